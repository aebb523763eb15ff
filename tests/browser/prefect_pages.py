"""Prefect's pages: the form of a deployment, its schedules, a run with its artifacts, the form of a suspended run."""

from dataclasses import dataclass

from tests.browser.page import PATIENCE, Page

_PROPERTY = "contains(concat(' ', @class, ' '), ' schema-form-property ')"
_LABEL = "contains(@class, 'schema-form-property__label')"


@dataclass
class PrefectPages:
    """The pages of the server at `url`."""

    page: Page
    url: str

    def open_deployments(self) -> None:
        """The list."""
        self.page.open(f"{self.url}/deployments")
        self.page.wait_for("8 Deployments", "retrain", "approve")

    def open_deployment(self, name: str) -> None:
        """Its page, by way of the list."""
        self.open_deployments()
        self.page.click(f"//a[contains(@href, '/deployments/') and normalize-space()='{name}']")
        self.page.wait_for("Schedules", "Configuration")

    def open_form(self) -> None:
        """The form that starts a run of the deployment whose page is open."""
        self.page.press("Run")
        self.page.press("Custom run")
        self.page.wait_for("Parameters", "Run Name", "Submit")

    def quick_run(self) -> None:
        """Start a run of the deployment whose page is open, with its own parameters."""
        self.page.press("Run")
        self.page.press("Quick run")

    def fill(self, label: str, text: str) -> None:
        """Write into the form's field."""
        self.page.write(f"{_field(label)}//textarea", text)

    def add_item(self, label: str, text: str) -> None:
        """Write the first item of a field that is a list or nothing."""
        self.page.click(f"{_field(label)}//button[normalize-space()='list']")
        self.page.click(f"{_field(label)}//button[normalize-space()='Add item']")
        self.fill(label, text)

    def choose(self, label: str, value: str) -> None:
        """One of the field's values."""
        from selenium.webdriver.support.select import Select

        select = self.page.find(f"{_field(label)}//select[option[@value='{value}']]")
        Select(select).select_by_value(value)

    def submit(self) -> None:
        """Send the form, and wait until it is gone."""
        self.page.press("Submit")
        self.page.until(lambda: not self.page.driver.current_url.partition("?")[0].endswith("/run"))

    def open_run(self, run: str) -> None:
        """The page of the run with this id."""
        self.page.open(f"{self.url}/runs/flow-run/{run}")
        self.page.wait_for("Logs", "Artifacts")

    def state(self, name: str, *, seconds: float = PATIENCE) -> None:
        """Until the run whose page is open is shown in this state."""
        badge = f"(//*[contains(@class, 'state-badge')])[1][normalize-space()='{name}']"
        self.page.find(badge, seconds=seconds)

    def cancel(self) -> None:
        """End the run whose page is open."""
        self.page.press("Cancel")
        self.page.wait_for("Cancel Flow Run")
        self.page.press("Confirm")

    def open_tab(self, name: str) -> None:
        """Of a run's page."""
        self.page.click(f"//li[contains(@class, 'p-tab') and normalize-space()='{name}']")
        self.page.find(f"//li[contains(@class, 'p-tab__active') and normalize-space()='{name}']")

    def artifacts(self, *keys: str) -> dict[str, str]:
        """The address of each artifact of the run whose page is open, by key."""
        self.open_tab("Artifacts")
        self.page.scroll_to("//h6[normalize-space()='Task runs']")
        self.page.wait_for(*keys)
        # A card reads: its kind, its key, when, its description.
        return {
            words.split("\n")[1]: address
            for words, address in self.page.links("/artifact/").items()
        }

    def switch(self, schedule: str) -> str:
        """The switch of the schedule on a deployment's page, as an XPath."""
        return (
            f"//*[normalize-space(text())='{schedule}']"
            "/ancestor::*[.//*[@role='switch']][1]//*[@role='switch']"
        )

    def is_on(self, schedule: str) -> bool:
        """Whether its switch is."""
        return self.page.find(self.switch(schedule)).get_attribute("aria-checked") == "true"


def _field(label: str) -> str:
    return f"//*[{_PROPERTY}][.//*[{_LABEL} and (.='{label}' or starts-with(., '{label} '))]]"
