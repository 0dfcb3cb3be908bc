"""Code of a standard rule does not change unnoticed: its source is pinned to its version.

rule_sources.json holds for each rule its version and the digest of its normalised source (the
rule and the helpers it imports, without docstrings and comments). Whoever changes the code says
what that means for artifacts:

    raise `version=` in the rule                        its targets become stale
    python tests/golden/test_rule_versions.py "why"     the same bytes come out; why that is so

Either way the script writes the file anew.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINNED = Path(__file__).with_name("rule_sources.json")
PACK = ROOT / "rules/ftbuild_rules"


def sources() -> dict[str, dict[str, object]]:
    """Return version and source digest of each standard rule, as the code stands."""
    from ftbuild.digest import hash_file, hash_value
    from ftbuild.registry import Registry
    from ftbuild.rulesource import source_digest

    registry = Registry(ROOT / "docs")
    found: dict[str, dict[str, object]] = {}
    for name in registry.names():
        digest, files = source_digest(Path(registry.facts(name).file), PACK)
        # A template is code too: what the modules beside it render.
        templates = sorted(
            t for folder in {f.parent for f in files} for t in folder.glob("*.jinja")
        )
        whole = hash_value([digest, [[t.name, hash_file(t)] for t in templates]])
        found[name] = {"version": registry.rule(name).version, "source": whole}
    return found


def test_source_of_each_rule_is_that_of_its_version() -> None:
    pinned = json.loads(PINNED.read_text())["rules"]
    now = sources()
    changed = [
        name
        for name, entry in now.items()
        if name in pinned
        and entry["source"] != pinned[name]["source"]
        and entry["version"] == pinned[name]["version"]
    ]
    assert not changed, (
        f"the code of {', '.join(changed)} changed, its version did not: raise `version`, or, if "
        'the same bytes come out, run: python tests/golden/test_rule_versions.py "why"'
    )
    assert now == pinned, "run: python tests/golden/test_rule_versions.py"


def test_version_never_falls() -> None:
    now = sources()
    for name, entry in json.loads(PINNED.read_text())["rules"].items():
        assert now[name]["version"] >= entry["version"], name


def main() -> None:
    """Pin the code as it stands; with a reason, note that the same bytes come out."""
    kept = json.loads(PINNED.read_text()) if PINNED.exists() else {"same_bytes": []}
    if len(sys.argv) > 1:
        kept["same_bytes"].append(sys.argv[1])
    kept["rules"] = sources()
    PINNED.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "rules")]
    main()
