"""Texts to measure on: prose, technical and dialogue, fetched once and cut the same way on every machine.

Owns: models/texts/ (not in git). They are Alice's Adventures in Wonderland, the proceedings of a Library of Congress workshop on
electronic texts, As You Like It and Paradise Lost, from the Canterbury and Large corpora, all in the public domain; they come in
the source package of brotli 1.1.0 on PyPI (MIT), as its tests use them.
Refuses: a file whose SHA-256 is not the one below.
"""

import hashlib
import pathlib
import subprocess
import sys
import tarfile
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "models" / "texts"
PACKAGE = "brotli==1.1.0"
# Kind of text: file, SHA-256 of it in the package.
TEXTS = {
    "prose": ("alice29.txt", "7467306ee0feed4971260f3c87421154a05be571d944e9cb021a5713700c38f0"),
    "technical": ("lcet10.txt", "5314ba1dbb03f471df88bec6cd120a938ef60d0fd3511c5c1dce61bf7463245f"),
    "dialogue": ("asyoulik.txt", "eaa3526fe53859f34ecdf255712f9ecf0b2c903451d4755b2edaa2e2599cb0fc"),
    "verse": ("plrabn12.txt", "07e2e0b461af78c7c647cb53dab39de560198e16f799b4516eccf0fbd69f764c"),
}


def path(kind):
    """The text of a kind, fetched if it is not there yet. Line ends are those of Unix; nothing else is changed."""
    name, wanted = TEXTS[kind]
    found = FOLDER / name
    if not found.is_file():
        fetch()
    return found


def fetch():
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", folder, PACKAGE]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"texts.py: pip did not bring the source package of {PACKAGE}")
        (archive,) = pathlib.Path(folder).glob("*.tar.gz")
        FOLDER.mkdir(exist_ok=True)
        with tarfile.open(archive) as tar:
            for name, wanted in TEXTS.values():
                member = next(m for m in tar.getmembers() if m.name.endswith(f"/tests/testdata/{name}"))
                data = tar.extractfile(member).read()
                if hashlib.sha256(data).hexdigest() != wanted:
                    sys.exit(f"texts.py: {name} of {PACKAGE} is not the file that was measured on")
                text = data.decode("latin-1").replace("\r", "").replace("\x1a", "")
                unfinished = FOLDER / f".{name}"
                unfinished.write_text(text, encoding="utf-8")
                unfinished.rename(FOLDER / name)


if __name__ == "__main__":
    for kind in TEXTS:
        print(path(kind))
