"""MLflow's pages: a registered model, one of its versions, the runs of an experiment."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.browser.page import Page


@dataclass
class MlflowPages:
    """The pages of the server at `url`."""

    page: Page
    url: str
    _welcomed: bool = False

    def open_model(self, name: str) -> None:
        """The registered model's page."""
        self._open(f"models/{name}")
        self.page.wait_for(name, "Versions", "Version 1")

    def open_version(self, name: str, version: str) -> None:
        """The page of one version."""
        self._open(f"models/{name}/versions/{version}")
        self.page.wait_for(f"Version {version}", "Registered At", "Description")

    def set_alias(self, alias: str) -> None:
        """Give it to the version whose page is open, and save."""
        from selenium.webdriver.common.keys import Keys

        self.page.click("//button[@title='Edit aliases']")
        field = self.page.find("//*[@role='dialog']//input")
        field.send_keys(alias)
        field.send_keys(Keys.ENTER)
        # Between the sign and the word is a space that does not break.
        self.page.find(f"//*[@role='dialog']//*[contains(translate(., '\xa0', ' '), '@ {alias}')]")
        self.page.picture("mlflow-alias")
        self.page.press("Save aliases")
        self.page.until(
            lambda: not self.page.driver.find_elements("xpath", "//*[@role='dialog']//input"),
            what="the end of the dialog",
        )

    def open_runs(self, experiment_id: str) -> None:
        """The table of an experiment's runs."""
        self._open(f"experiments/{experiment_id}/runs")
        self.page.wait_for("Run Name", "matching run")

    def open_run(self, run: Any) -> None:
        """The page of one run, as the client gives it."""
        self._open(f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
        self.page.wait_for("About this run", "Parameters")

    def _open(self, place: str) -> None:
        if not self._welcomed:
            self._dismiss_welcome()
        self.page.open(f"{self.url}/#/{quote(place)}")

    def _dismiss_welcome(self) -> None:
        """What covers the pages at somebody's first visit: two advertisements of MLflow's own."""
        self.page.open(f"{self.url}/#/models")
        self.page.press("Try it now")
        close = "//button[@data-component-id='mlflow.assistant.chat_panel.close']"
        self.page.click(close)
        self.page.until(
            lambda: (
                not any(it.is_displayed() for it in self.page.driver.find_elements("xpath", close))
            )
        )
        self._welcomed = True
