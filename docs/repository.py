"""mkdocs hook: pages and pictures that lie elsewhere in the repository join the site, so that their links are checked too.

`README.md` is the first page. What else a page links to outside `docs/` is found under `repository/`, and links follow.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
JOINING = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "examples/emoji/README.md", "checkpoints/*/*.png")
LINK = re.compile(r"```.*?```|`[^`\n]*`|(?<=\]\()(?![a-z]+:|#)(?P<path>[^)#\s]+)", re.DOTALL)
"""The path of a link or picture, without its anchor; or code, in which there are none."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files."""
    for pattern in JOINING:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, _on_site(path.relative_to(ROOT).as_posix()), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links, which are right in the repository, into those of the site."""
    here = page.file.src_uri
    origin = posixpath.dirname(_in_repository(here))

    def on_site(link: re.Match[str]) -> str:
        if link["path"] is None:
            return link[0]
        target = _on_site(posixpath.normpath(posixpath.join(origin, link["path"])))
        return posixpath.relpath(target, posixpath.dirname(here) or ".")

    return LINK.sub(on_site, markdown)


def _on_site(path: str) -> str:
    """Where a file of the repository lies on the site."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def _in_repository(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    if uri == "index.md":
        return "README.md"
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"
