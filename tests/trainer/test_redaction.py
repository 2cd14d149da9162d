"""An address has a secret if its client reads one from it, and no text shows that secret."""

from __future__ import annotations

import random
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pytest
from sqlalchemy.engine import URL, make_url

from trainer.redaction import SECRET_VARIABLES, has_secret, redact, redact_all
from trainer.storage.s3 import address_of

LETTERS = "/@:%?#&=;+'\"\\[]$!~,()<>|*{}^` \tü漢aZ09._-"
SENTENCES = ("{}", "cannot open {}: it is away.", "see '{}'", "({})", "first line\nAPI request to {} failed\nlast line")
SECRET_OPTIONS = ("password", "sslpassword", "token", "secret_key", "session_token", "access_key", "AWS_SECRET")
PLAIN_OPTIONS = ("application_name", "region", "num_tokens", "sslkey", "user", "tokenizer", "endpoint_override")


def random_text(draw: random.Random, letters: str = LETTERS) -> str:
    # The marks make sure that the secret is no part of anything else in the sentence.
    return "K" + "".join(draw.choices(letters, k=draw.randrange(1, 12))) + "Q7"


def database_addresses(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Addresses as SQLAlchemy writes them, each with its secret."""
    secret = random_text(draw)
    url = URL.create("postgresql+psycopg", "ada", secret, "db", 5432, random_text(draw))
    yield url.render_as_string(hide_password=False), secret
    option = draw.choice(SECRET_OPTIONS)
    url = URL.create("postgresql+psycopg", "ada", None, "db", None, "sptune", {"sslmode": "off", option: secret})
    yield url.render_as_string(hide_password=False), secret


def server_addresses(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Addresses as urllib writes them, each with its secret."""
    secret = random_text(draw)
    yield f"https://ada:{quote(secret, safe='')}@mlflow:5000/{quote(random_text(draw))}#/runs", secret
    query = urlencode({draw.choice(PLAIN_OPTIONS): "x", draw.choice(SECRET_OPTIONS): secret})
    yield f"http://mlflow:5000/base?{query}", secret


def bucket_addresses(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Addresses as pyarrow reads them, each with its secret."""
    secret = random_text(draw)
    yield f"s3://AKIA:{quote(secret, safe='')}@bucket/folder?region=eu-west-1", secret
    query = urlencode({"region": "eu-west-1", draw.choice(SECRET_OPTIONS[2:]): secret})
    yield f"s3://bucket/folder?{query}/name", secret


@pytest.mark.parametrize("addresses", [database_addresses, server_addresses, bucket_addresses])
def test_a_secret_is_found_and_is_left_in_no_sentence(addresses: object) -> None:
    draw = random.Random(0)
    for _ in range(150):
        for address, secret in addresses(draw):  # type: ignore[operator]
            assert has_secret(address), address
            for sentence in SENTENCES:
                text = redact(sentence.format(address))
                assert secret not in text and quote(secret, safe="") not in text, address
                assert redact(text) == text, "redacting twice changes nothing"


def test_an_address_without_a_secret_is_accepted_and_unchanged() -> None:
    draw = random.Random(1)
    for _ in range(150):
        name = quote(random_text(draw), safe="/")
        query = urlencode(dict.fromkeys(draw.sample(PLAIN_OPTIONS, 2), "5 0"))
        for address in (
            URL.create("postgresql+psycopg", "ada", None, "db", 5432, "sptune").render_as_string(),
            f"https://ada@mlflow:5000/{name}?{query}",
            f"s3://AKIA@bucket/{name}?{query}".replace("sslkey", "ssl"),
        ):
            assert not has_secret(address), address
            assert redact(address) == address
            assert redact(f"see {address} for more") == f"see {address} for more"


@pytest.mark.parametrize(
    "path",
    ["num_tokens=50", "/data/num_tokens=50", "/data/password=x/run", "./a:b@c", "C:/ada:x@y", "sqlite:////d/password=x",
     "sqlite:////d/a?password=x", "sqlite:////d/u:p@x/studies.db", "file:///d/token=x", "/d/host=db/token=x"],
)  # fmt: skip
def test_a_local_path_has_no_secret(path: str) -> None:
    assert not has_secret(path)
    # Texts hide when in doubt.
    if "?" not in path:
        assert redact(path) == path
        assert redact(f"cannot read {path}: gone") == f"cannot read {path}: gone"


def test_secrets_are_found_where_each_client_finds_them() -> None:
    """Addresses of raw letters, which people write without encoding them."""
    draw = random.Random(2)
    num_accepted = 0
    for _ in range(3000):
        rest = "".join(draw.choices("ab:/@?&=%# .1", k=draw.randrange(1, 14))) + draw.choice(
            ["", "&password=x", "?token=1"]
        )

        try:
            url = make_url(f"postgresql+psycopg://{rest}")
        except ValueError:
            pass
        else:
            options = [name for name, value in url.query.items() if value and name.endswith(("password", "token"))]
            if url.password or options:
                assert has_secret(f"postgresql+psycopg://{rest}"), rest
            elif "@" not in (url.host or ""):
                assert not has_secret(f"postgresql+psycopg://{rest}"), rest
                num_accepted += 1

        try:
            split = urlsplit(f"http://{rest}")
            _ = split.port
        except ValueError:
            continue
        has_option = any(value and name.endswith(("password", "token")) for name, value in parse_qsl(split.query))
        assert has_secret(f"http://{rest}") == bool(split.password or has_option), rest

        address = address_of(f"s3://{rest}")
        assert address is not None
        if address.authority.rpartition("@")[0].partition(":")[2]:
            assert has_secret(f"s3://{rest}"), rest
    assert num_accepted > 500


def test_what_has_a_secret_is_changed_by_the_redaction() -> None:
    draw = random.Random(3)
    for _ in range(3000):
        scheme = draw.choice(["postgresql+psycopg", "https", "s3", "gs"])
        address = f"{scheme}://" + "".join(draw.choices("ab:/@?&=%#[] .1", k=12)) + draw.choice(["", "?password=xyz"])
        if has_secret(address):
            assert redact(address) != address or "***" in address, address
            assert "xyz" not in redact(address)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host=db password='hun ter2' user=ada", "host=db password=*** user=ada"),
        ("host = db password = hunter2", "host = db password = ***"),
        (r"host=db password='it\'s' user=ada", "host=db password=*** user=ada"),
        ("{'user': 'ada', 'password': 'a b'}", "{'user': 'ada', 'password': '***'}"),
        ('"secret_key": "a\\"b", "region": "x"', '"secret_key": "***", "region": "x"'),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("python -m trainer --token=abc --lr 1", "python -m trainer --token=*** --lr 1"),
        ("s3://bucket?secrte_key=ab/c", "s3://bucket?secrte_key=***"),
        ("postgresql://ada@db/x?p%61ssword=hunter2", "postgresql://ada@db/x?p%61ssword=***"),
        ("see postgresql://ada:hun ter2@db/x: away", "see postgresql://ada:***@db/x: away"),
        ("see http://127.0.0.1:5000 is away; mail ada@x", "see http://127.0.0.1:5000 is away; mail ada@x"),
    ],
)
def test_a_text_is_shown_without_its_secrets(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact_all({"a": [text, 1, None]}) == {"a": [expected, 1, None]}


@pytest.mark.parametrize("variable", SECRET_VARIABLES)
def test_the_value_of_a_secret_variable_is_hidden_wherever_it_stands(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "wJalr/XUt+nFEMI")
    assert redact("refused wJalr/XUt+nFEMI, or wJalr%2FXUt%2BnFEMI.") == "refused ***, or ***."
    monkeypatch.setenv(variable, "sptune")
    assert redact("run sptune") == "run sptune", "a word in small letters is text"
