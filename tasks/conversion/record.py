"""The sidecar that a conversion leaves beside its result, so that the next one needs no flags."""

from collections import Counter

from tasks.conversion.job import ConversionJob, ConvertedModule
from tasks.conversion.sidecar import BiasMode, CheckpointLayout, ModuleSettings, Sidecar


def completed_sidecar(
    job: ConversionJob,
    modules: list[ConvertedModule],
    bias: BiasMode,
    layout: CheckpointLayout,
) -> Sidecar:
    """All that loralib's file does not say: the common rank and alpha, and what differs by module."""
    r, alpha = Counter((module.r, module.alpha) for module in modules).most_common(1)[0][0]
    differing = {
        module.name: ModuleSettings(
            r=None if module.r == r else module.r,
            alpha=None if module.alpha == alpha else module.alpha,
            enable_lora=module.enable_lora,
        )
        for module in modules
    }
    alike: dict[str, list[ModuleSettings]] = {}
    for name, told in differing.items():
        alike.setdefault(name.rsplit(".", 1)[-1], []).append(told)
    said: dict[str, ModuleSettings] = {}
    for name, told in differing.items():
        last = name.rsplit(".", 1)[-1]
        # One entry for all modules of a name, where they are alike: people read and edit this file.
        uniform = all(other == told for other in alike[last])
        said[last if uniform else name] = told
    return Sidecar(
        base=job.base_name,
        architecture=job.sidecar.architecture,
        bias=bias,
        r=r,
        alpha=alpha,
        modules={name: told for name, told in said.items() if told != ModuleSettings()},
        checkpoint=layout,
    )
