"""Pictures of every page, light and dark, in three sizes: `make screenshots` writes them into screenshots/.

    python -m tests.browser.screenshots [--data DIR] [--only desktop-light,phone-light] [--match runs]

DIR is a data folder in which the demo has ended; without it the demo is run first. The folder itself is not changed.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import cast

from playwright.sync_api import Browser, sync_playwright

from app import db
from app.config import settings
from app.launcher import Services
from app.main import create_app
from scripts.setup import find_chromium
from tests.browser.pages import Page, list_pages
from tests.browser.seed import EMPTY, seed
from tests.browser.visit import SIZES, Scheme, settle, visit
from tests.demo.seeded import read_seeded, run_demo
from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
LOOKS = [f"{size}-{scheme}" for size in SIZES for scheme in ("light", "dark")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data folder in which the demo has ended")
    parser.add_argument("--only", default=",".join(LOOKS), help=f"of {', '.join(LOOKS)}")
    parser.add_argument("--match", default="", help="only pages whose address holds this")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="preflab-screenshots-") as folder:
        data = Path(folder) / "data"
        seeded = read_seeded(args.data) if args.data else run_demo(Path(folder) / "demo")
        seeded.copy_to(data)
        for name in [name for name in os.environ if name.startswith("PREFLAB_")]:
            del os.environ[name]
        os.environ |= {"PREFLAB_DATA": str(data), "PREFLAB_PORT": str(free_port())}
        db.engine.cache_clear()
        settings.cache_clear()
        with Services() as services, sync_playwright() as playwright:
            with db.transaction() as session:
                seed(session)
            path = find_chromium()
            chromium = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
            pages = [page for page in find_pages(chromium, services.url) if args.match in page.url]
            for look in args.only.split(","):
                take(chromium, services.url, look, pages)
            chromium.close()


def find_pages(browser: Browser, url: str) -> list[Page]:
    """Every page of the demo's project, and the empty project's home and lists."""
    with visit(browser, url) as visitor:

        def is_page(address: str) -> bool:
            answer = visitor.context.request.get(address)
            is_file = "content-disposition" in answer.headers
            return not is_file and "<!doctype html>" in answer.text()[:200]

        with db.reading() as session:
            pages = list(list_pages(create_app(), session, is_page))
    lists = [page for page in pages if page.route.startswith("/p/{project}") and page.route.count("{") == 1]
    empty = [Page(page.route, page.url.replace("/p/demo", f"/p/{EMPTY}", 1)) for page in lists]
    return [*pages, *empty, Page("", "/p/demo/runs/999999")]


def take(browser: Browser, url: str, look: str, pages: list[Page]) -> None:
    """One picture a page, the whole of its length, into screenshots/<look>/."""
    size, _, scheme = look.partition("-")
    folder = ROOT / "screenshots" / look
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with visit(browser, url, size=size, scheme=cast(Scheme, scheme)) as visitor:
        tab = visitor.new_page()
        for page in pages:
            tab.goto(page.url)
            settle(tab)
            tab.screenshot(path=folder / f"{page.name}.png", full_page=True)
        print(f"{folder.relative_to(ROOT)}: {len(pages)} pictures")
        for complaint in visitor.take_complaints():
            print(f"  {complaint}")


if __name__ == "__main__":
    main()
