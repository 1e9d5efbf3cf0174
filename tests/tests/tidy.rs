//! The rules that no compiler knows: layers, file length, module docs, names, and words that may not stand in the tree.
//!
//! Goal: a boundary that is only prose erodes; here it fails the build. Method: read the files that git tracks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest source file in lines. Above it, the file has two reasons to be opened.
const FILE_LINES_MAX: usize = 600;

/// Which of our crates each crate may depend on (DESIGN of the layers: ARCHITECTURE.md, "Parts").
const LAYERS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("go-plugin", &["proto"]),
    ("podman-driver", &["go-plugin", "proto"]),
    ("volume", &[]),
    ("volume-s3", &["volume"]),
    ("volume-mount", &["proto", "volume", "volume-s3"]),
    ("csi-driver", &["proto", "volume", "volume-s3"]),
    ("xtask", &[]),
];

/// Libraries that only one room may know: (dependency, the crates that may name it).
const ROOMS: &[(&str, &[&str])] = &[
    ("io-uring", &["volume-mount"]),
    ("aws-sdk-s3", &["volume-s3"]),
    ("aws-config", &["volume-s3"]),
    ("slatedb", &["volume"]),
    ("foyer", &["volume"]),
    ("hcl-rs", &["pannier"]),
];

/// Names of rooms that say nothing.
const BANNED_NAMES: &[&str] = &[
    "utils", "util", "common", "helper", "helpers", "manager", "misc", "types",
];

/// A word and the only files that may use it: translation to the outside happens in one place per edge.
const EDGES: &[(&str, &str, &[&str])] = &[
    ("libc::E", "csi/", &["csi/mount/src/errno.rs"]),
    ("Code::", "csi/driver/src/", &["csi/driver/src/grpc.rs"]),
    ("Code::", "plugins/podman/src/", &["plugins/podman/src/grpc.rs"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace")
        .to_path_buf()
}

/// Files of the tree: what git tracks, or would if it were added.
fn files() -> Vec<(String, String)> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the tree");
    assert!(
        output.status.success(),
        "git ls-files failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names = String::from_utf8(output.stdout).expect("our file names are UTF-8");
    let files: Vec<_> = names
        .lines()
        .filter_map(|name| Some((name.to_owned(), std::fs::read_to_string(root().join(name)).ok()?)))
        .collect();
    assert!(files.len() > 50, "the tree has files");
    files
}

fn is_source(name: &str) -> bool {
    name.ends_with(".rs") || name.ends_with(".go")
}

fn complain(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn no_source_file_is_longer_than_600_lines() {
    let found: Vec<_> = files()
        .iter()
        .filter(|(name, text)| is_source(name) && text.lines().count() > FILE_LINES_MAX)
        .map(|(name, text)| format!("{name}: {} lines", text.lines().count()))
        .collect();
    complain("split these by their reasons to be opened", &found);
}

#[test]
fn every_rust_file_begins_by_saying_what_it_is() {
    let found: Vec<_> = files()
        .iter()
        .filter(|(name, text)| name.ends_with(".rs") && !text.starts_with("//!"))
        .map(|(name, _)| name.clone())
        .collect();
    complain("these files have no module doc", &found);
}

#[test]
fn no_room_is_named_after_nothing() {
    let found: Vec<_> = files()
        .iter()
        .filter(|(name, _)| {
            let path = Path::new(name);
            path.iter().any(|part| {
                let part = part.to_string_lossy();
                BANNED_NAMES.contains(&part.trim_end_matches(".rs").trim_end_matches(".go"))
            })
        })
        .map(|(name, _)| name.clone())
        .collect();
    complain("name these after what is in them", &found);
}

#[test]
fn what_is_left_to_do_names_its_issue() {
    // Built from parts, so that this file does not find itself.
    let marks = [
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["XX", "X"].concat(),
        ["unimple", "mented!"].concat(),
    ];
    let mut found = Vec::new();
    for (name, text) in files().iter().filter(|(name, _)| is_source(name)) {
        for (index, line) in text.lines().enumerate() {
            let marked = marks.iter().any(|mark| line.contains(mark.as_str()));
            if marked && !line.contains('#') {
                found.push(format!("{name}:{}: {}", index + 1, line.trim()));
            }
        }
    }
    complain("finish these, or give them an issue's number", &found);
}

#[test]
fn outward_translation_stays_in_one_file_per_edge() {
    let mut found = Vec::new();
    for (word, folder, allowed) in EDGES {
        for (name, text) in files()
            .iter()
            .filter(|(name, _)| name.ends_with(".rs") && name.starts_with(folder))
        {
            let is_test = name.contains("/tests") || name.ends_with("tests.rs");
            if is_test || allowed.contains(&name.as_str()) {
                continue;
            }
            let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for (index, line) in code.lines().enumerate() {
                let is_comment = line.trim_start().starts_with("//");
                let hit = line.find(word).is_some_and(|at| {
                    let before = line[..at].chars().next_back();
                    let after = line[at + word.len()..].chars().next();
                    !before.is_some_and(char::is_alphanumeric) && after.is_some_and(|c| c.is_ascii_uppercase())
                });
                if hit && !is_comment {
                    found.push(format!("{name}:{}: {}", index + 1, line.trim()));
                }
            }
        }
    }
    complain("these choose an outward code away from the edge's own file", &found);
}

/// The `[dependencies]` names of one Cargo.toml.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut section = "";
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]" {
            let name: String = line
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '-' || *c == '_')
                .collect();
            if !name.is_empty() {
                names.push(name);
            }
        }
    }
    names
}

/// Package name to its dependencies, for every crate of the workspace.
fn manifests() -> BTreeMap<String, Vec<String>> {
    let all = files();
    let crates: BTreeMap<_, _> = all
        .iter()
        .filter(|(name, text)| name.ends_with("Cargo.toml") && text.contains("[package]"))
        .map(|(name, text)| {
            let package = text
                .lines()
                .find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
                .unwrap_or_else(|| panic!("{name} names its package"));
            (package.to_owned(), dependencies(text))
        })
        .collect();
    assert!(crates.len() >= 10, "the workspace has its crates");
    crates
}

#[test]
fn a_crate_imports_only_the_layers_below_it() {
    let crates = manifests();
    let mut found = Vec::new();
    for (package, allowed) in LAYERS {
        let dependencies = crates
            .get(*package)
            .unwrap_or_else(|| panic!("there is a crate {package}"));
        for dependency in dependencies {
            if crates.contains_key(dependency) && !allowed.contains(&dependency.as_str()) {
                found.push(format!("{package} imports {dependency}"));
            }
        }
    }
    complain("these cross a boundary", &found);
}

#[test]
fn a_library_is_known_only_in_its_room() {
    let crates = manifests();
    let mut found = Vec::new();
    for (library, rooms) in ROOMS {
        for (package, dependencies) in &crates {
            if dependencies.iter().any(|name| name == library) && !rooms.contains(&package.as_str()) {
                found.push(format!("{package} imports {library}"));
            }
        }
    }
    complain("these libraries leak out of their rooms", &found);
}

#[test]
fn every_exemption_from_a_lint_gives_its_reason() {
    let mut found = Vec::new();
    for (name, text) in files().iter().filter(|(name, _)| name.ends_with(".rs")) {
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_start();
            let opens = line.starts_with("#[allow(") || line.starts_with("#![allow(") || line.starts_with("#[expect(");
            let whole: String = text.lines().skip(index).take(8).collect();
            if opens && !whole.split(")]").next().unwrap_or_default().contains("reason") {
                found.push(format!("{name}:{}", index + 1));
            }
        }
    }
    complain("these exemptions have no reason", &found);
}
