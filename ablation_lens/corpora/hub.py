"""Data sets of the Hugging Face hub, streamed: nothing is downloaded that is not read."""

import functools
import re
from dataclasses import dataclass
from typing import Self

from ablation_lens.corpora.documents import Source
from ablation_lens.corpora.options import Options
from ablation_lens.corpora.streams import ParquetFile, parquet_table, quiet, stream_table
from ablation_lens.corpora.tables import Table, table_source
from ablation_lens.errors import CorpusError

# `datasets` retries for half a minute where there is no network; one question with a limit is asked first.
PROBE_SECONDS = 10.0

_ADDRESS = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[^:]*))?(:(?P<split>[^:]+))?")

# Held-out text first: models have often seen the rest.
_PREFERRED_SPLITS = ("test", "validation", "train")

LOCAL_ALTERNATIVE = "a local path instead (a text file or folder, JSON lines, Parquet, or an image folder)"


@dataclass(frozen=True)
class HubAddress:
    """`owner/name[:config][:split]`. A lone part that is train, validation or test is the split."""

    id: str
    config: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read an address; None when the text is not one.

        >>> HubAddress.parse("Salesforce/wikitext:wikitext-103-raw-v1:test")
        HubAddress(id='Salesforce/wikitext', config='wikitext-103-raw-v1', split='test')
        >>> HubAddress.parse("NeelNanda/pile-10k:train")
        HubAddress(id='NeelNanda/pile-10k', config=None, split='train')
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            return None
        config, split = found["config"] or None, found["split"]  # `a/b::dev` has an empty config
        if split is None and config in _PREFERRED_SPLITS:
            config, split = None, config
        return cls(found["id"], config, split)

    def __str__(self) -> str:
        return ":".join(part for part in (self.id, self.config, self.split) if part)


def open_hub(address: HubAddress, options: Options, hint: str = "") -> Source:
    """The source of a hub data set, pinned to the commit that is there now.

    Args:
        address: which data set.
        options: see `open_corpus`.
        hint: appended to the error when the hub cannot be reached.
    """
    commit = _commit(address, hint)
    try:
        with quiet():
            return table_source(_table(address, commit), options)
    except CorpusError:
        raise
    except Exception as error:  # from several layers, by no common class
        raise CorpusError(
            f"the hub data set {str(address)!r} cannot be opened ({_first_line(error)}); "
            f"write it as owner/name[:config][:split], or give {LOCAL_ALTERNATIVE}."
        ) from error


def _table(address: HubAddress, commit: str | None) -> Table:
    import datasets  # type: ignore[import-untyped]
    import fsspec  # type: ignore[import-untyped]

    # Pinned, so that the commit in the record is what was read, even if the data set changes meanwhile.
    builder = datasets.load_dataset_builder(address.id, address.config, revision=commit)
    files = builder.config.data_files or {}
    splits = list(files) if files else list(builder.as_streaming_dataset())
    split = address.split or next((name for name in _PREFERRED_SPLITS if name in splits), splits[0])
    if split not in splits:
        raise CorpusError(
            f"the hub data set {address.id!r} has no split {split!r}; its splits are {', '.join(splits)}."
        )
    location = f"hub:{HubAddress(address.id, address.config, split)}@{commit[:12] if commit else 'unknown'}"
    urls = [str(url) for url in files.get(split, ())]
    if urls and all(url.endswith(".parquet") for url in urls):
        # `partial` binds each url now; a lambda would open the last one every time.
        parquet = [ParquetFile(f"{address}#{n}", functools.partial(fsspec.open, url)) for n, url in enumerate(urls)]
        return parquet_table(location, parquet, builder.info.features)
    return stream_table(location, builder.as_streaming_dataset(split=split), str(address))


def _commit(address: HubAddress, hint: str) -> str | None:
    """The data set's current commit; a `CorpusError` when the hub, or this user's right to read it, is missing."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    api = HfApi()
    name = f"the hub data set {address.id!r}"
    try:
        info = api.dataset_info(address.id, timeout=PROBE_SECONDS)
        # The description of a gated data set is open to everybody; only this asks whether its files are.
        if info.gated:
            api.auth_check(address.id, repo_type="dataset")
    except GatedRepoError as error:  # first, as it is a RepositoryNotFoundError too
        raise CorpusError(
            f"{name} is gated: accept its terms at https://huggingface.co/datasets/{address.id} and log in with "
            f"`hf auth login`, or give {LOCAL_ALTERNATIVE}."
        ) from error
    except RepositoryNotFoundError as error:
        raise CorpusError(
            f"{name} does not exist, or is private and you are not logged in; "
            f"check its name, or give {LOCAL_ALTERNATIVE}.{hint}"
        ) from error
    except Exception as error:  # httpx, requests or OSError, by the version of huggingface_hub
        raise CorpusError(
            f"{name} cannot be reached ({_first_line(error)}); check the network, or give {LOCAL_ALTERNATIVE}.{hint}"
        ) from error
    return info.sha


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
