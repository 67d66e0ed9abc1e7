"""Cubes as models of rs-embed, used like its own."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copcube.errors import CopcubeError, MissingPackageError, ModelError, SpecError
from copcube.lookup.contract import describe, get_embeddings_batch

if TYPE_CHECKING:
    import xarray as xr


def register_rs_embed(
    name: str = "copcube",
    cube: "xr.Dataset | str | Path | None" = None,
    *,
    compat: bool = False,
) -> type:
    """Register a cube as a model of rs-embed, so that its functions and exports use it.

    Parameters
    ----------
    name : str
        Name of the model: ``rs_embed.get_embedding(name, …)``.
    cube : xarray.Dataset, str, Path or None
        The cube, as in `get_embedding`; ``model_config={"store": …}`` names another.
    compat : bool
        As in `get_embedding`.

    Returns
    -------
    type
        The class that was registered.

    Raises
    ------
    MissingPackageError
        If rs-embed is not installed.
    """
    try:
        from rs_embed.core import embedding, errors, registry, types
        from rs_embed.embedders.base import EmbedderBase
    except ImportError:
        raise MissingPackageError("to register a model there: pip install rs-embed") from None

    def options(sensor: Any, model_config: Any, rest: dict[str, Any]) -> dict[str, Any]:
        config = dict(model_config or {})
        store = config.get("store", config.get("data_dir", cube))
        return {"cube": store, "sensor": sensor, "compat": compat, **rest}

    def translated(error: CopcubeError) -> Exception:
        return getattr(errors, type(error).__name__)(str(error))  # type: ignore[no-any-return]

    class CopcubeEmbedder(EmbedderBase):  # type: ignore[misc]
        """Vectors of a copcube cube."""

        capabilities = types.EmbedderCapabilities(model_config_single=True, model_config_batch=True)

        def describe(self) -> dict[str, Any]:
            return describe()

        def get_embedding(
            self,
            *,
            spatial: Any,
            temporal: Any = None,
            sensor: Any = None,
            output: Any = None,
            backend: str = "auto",
            device: str = "auto",
            model_config: dict[str, Any] | None = None,
        ) -> Any:
            return self.get_embeddings_batch(
                spatials=[spatial],
                temporal=temporal,
                sensor=sensor,
                output=output,
                backend=backend,
                device=device,
                model_config=model_config,
            )[0]

        def get_embeddings_batch(
            self,
            *,
            spatials: Iterable[Any],
            temporal: Any = None,
            sensor: Any = None,
            output: Any = None,
            backend: str = "auto",
            device: str = "auto",
            model_config: dict[str, Any] | None = None,
        ) -> list[Any]:
            asked = {"temporal": temporal, "output": output, "backend": backend, "device": device}
            try:
                found = get_embeddings_batch(
                    spatials=[*spatials], **options(sensor, model_config, asked)
                )
            except (SpecError, ModelError) as error:
                raise translated(error) from error
            model = {"model": self.model_name}
            return [embedding.Embedding(one.data, {**one.meta, **model}) for one in found]

    registered: type = registry.register(name)(CopcubeEmbedder)
    return registered
