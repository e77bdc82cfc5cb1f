"""Names of data sets on the Hugging Face hub, as people type them and as they are stored."""

import re
from typing import NamedTuple

from app.errors import Invalid

# owner/name, owner/name:split, owner/name/configuration:split, each also @revision before the split
HUB_NAME = re.compile(
    r"(?P<id>\w[\w.-]{0,95}(?:/\w[\w.-]{0,95})?)(?:/(?P<config>[\w.-]{1,96}))?(?:@(?P<revision>\w[\w./-]{0,99}))?"
    r"(?::(?P<split>\w[\w.-]{0,59}))?"
)


class HubName(NamedTuple):
    """What a name on the hub says."""

    id: str
    config: str = ""
    revision: str = ""
    split: str = ""

    def __str__(self) -> str:
        parts = [f"/{self.config}" * bool(self.config), f"@{self.revision}" * bool(self.revision)]
        return self.id + "".join(parts) + f":{self.split}" * bool(self.split)

    @property
    def is_pinned(self) -> bool:
        """Whether it names one commit, which never changes."""
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None


def read_hub_name(text: str) -> HubName:
    """The parts of a name on the hub; raises Invalid keyed by `path`."""
    found = HUB_NAME.fullmatch(text.strip())
    if found is None:
        message = (
            f"{text[:200]} is no data set's id: write owner/name, owner/name:split or owner/name/configuration:split, "
            "with @revision before the split where one is wanted."
        )
        raise Invalid(message, {"path": [message]})
    return HubName(*(found[part] or "" for part in HubName._fields))
