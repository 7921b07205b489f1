"""MkDocs calls these functions. They add pages from outside docs/, and correct links that leave it.

On the forge the same files are read in place, so links are written as relative paths of the
repository. The site has only docs/ and the pages of `OUTSIDE`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "config/README.md": "config.md",
}
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of `OUTSIDE`."""
    for source, page in OUTSIDE.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Point links at the pages of the site. Of a link to another file only its label is left."""
    sources = {page: source for source, page in OUTSIDE.items()}
    folder = os.path.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    return LINK.sub(lambda found: site_link(found, folder, page.file.src_uri), markdown)


def site_link(found: re.Match[str], folder: str, page: str) -> str:
    """Return the link as it is on the site.

    Args:
        found: a match of `LINK`.
        folder: where the page's source is, below `ROOT`.

    Raises:
        PluginError: the link names a file that is not in the repository.
    """
    label, address = found.groups()
    path, _, anchor = address.partition("#")
    if re.match(r"[a-z]+:", address) or not path:
        return found[0]
    target = os.path.normpath(os.path.join(folder, path))
    if not (ROOT / target).exists():
        raise PluginError(f"{page}: the link to {address} leads nowhere; {target} is not there")
    if target in OUTSIDE:
        target = f"docs/{OUTSIDE[target]}"
    elif not target.startswith("docs/"):
        return label
    return f"[{label}]({os.path.relpath(target, 'docs')}{'#' + anchor if anchor else ''})"
