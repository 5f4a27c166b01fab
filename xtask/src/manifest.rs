//! What cargo's metadata doesn't show: whether a member inherits the workspace's lints and dependency versions.
//!
//! This reads just as much TOML as manifests use: tables, `key = value` and values that run over several lines.

use std::fs;

use crate::process::Failure;
use crate::workspace::Workspace;

/// Every member that goes its own way, in words.
pub fn violations(workspace: &Workspace) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for package in &workspace.packages {
        let text = fs::read_to_string(&package.manifest)?;
        for violation in text_violations(&text) {
            found.push(format!("{}/Cargo.toml: {violation}", package.folder));
        }
    }
    Ok(found)
}

fn text_violations(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inherits_lints = false;
    // a table like [dependencies.name], until its `workspace = true` is seen
    let mut pending: Option<String> = None;
    let mut table = String::new();
    for entry in entries(text) {
        if let Some(name) = entry.strip_prefix('[') {
            found.extend(pending.take().map(|name| not_inherited(&name)));
            name.trim_end_matches(']').trim().clone_into(&mut table);
            pending = dependency_subtable(&table);
            continue;
        }
        let (key, value) = entry.split_once('=').unwrap_or((&entry, ""));
        let (key, value) = (key.trim(), compact(value));
        let inherited = (key.ends_with(".workspace") && value == "true") || value.contains("workspace=true");
        if table == "lints" && key == "workspace" && value == "true" {
            inherits_lints = true;
        }
        if pending.is_some() && key == "workspace" && value == "true" {
            pending = None;
        }
        if is_dependency_table(&table) && !inherited {
            found.push(not_inherited(key));
        }
    }
    found.extend(pending.map(|name| not_inherited(&name)));
    if !inherits_lints {
        found.push("no `workspace = true` under [lints]".to_owned());
    }
    found
}

fn not_inherited(name: &str) -> String {
    format!("the version of {name} isn't taken from the workspace's table (`{name}.workspace = true`)")
}

fn is_dependency_table(table: &str) -> bool {
    let last = table.rsplit('.').next().unwrap_or(table);
    matches!(last, "dependencies" | "dev-dependencies" | "build-dependencies")
}

fn dependency_subtable(table: &str) -> Option<String> {
    let (parent, name) = table.rsplit_once('.')?;
    is_dependency_table(parent).then(|| name.to_owned())
}

fn compact(value: &str) -> String {
    value
        .chars()
        .filter(|character| !character.is_whitespace())
        .collect()
}

/// The manifest's table headers and `key = value` entries, each on one line, without comments.
fn entries(text: &str) -> Vec<String> {
    let mut entries = Vec::new();
    let mut entry = String::new();
    for line in text.lines() {
        entry.push_str(without_comment(line).trim());
        let count = |wanted: &[char]| {
            entry
                .chars()
                .filter(|character| wanted.contains(character))
                .count()
        };
        if count(&['[', '{']) > count(&[']', '}']) {
            entry.push(' ');
            continue;
        }
        if !entry.is_empty() {
            entries.push(std::mem::take(&mut entry));
        }
    }
    entries
}

fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    for (position, character) in line.char_indices() {
        match character {
            '"' => quoted = !quoted,
            '#' if !quoted => return &line[..position],
            _ => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_inherits_everything_is_fine() {
        let text = r#"
            [package]
            name = "sample" # version = "1"
            version.workspace = true
            [dependencies]
            bytes.workspace = true
            tokio = { workspace = true, features = [
                "rt", # a comment with ]
                "net",
            ] }
            [target.'cfg(unix)'.dependencies]
            libc = { workspace=true }
            [dev-dependencies.proptest]
            workspace = true
            features = ["std"]
            [lints]
            workspace = true
        "#;
        assert_eq!(text_violations(text), Vec::<String>::new());
    }

    #[test]
    fn own_versions_are_named_wherever_they_stand() {
        let text = r#"
            [dependencies]
            bytes = "1"
            sibling = { path = "../sibling" }
            [build-dependencies]
            cc = { version = "1", features = [
                "parallel",
            ] }
            [target.'cfg(unix)'.dependencies]
            libc = "0.2"
            [dependencies.rand]
            version = "0.9"
            [lints]
            workspace = true
        "#;
        let found = text_violations(text);
        assert_eq!(found.len(), 5, "{found:?}");
        for (violation, name) in found.iter().zip(["bytes", "sibling", "cc", "libc", "rand"]) {
            assert!(
                violation.starts_with(&format!("the version of {name} ")),
                "{violation}"
            );
        }
    }

    #[test]
    fn missing_lints_are_noticed() {
        assert_eq!(
            text_violations("[package]\nname = \"x\"\n"),
            ["no `workspace = true` under [lints]"]
        );
        assert_eq!(
            text_violations("[lints]\nworkspace = false\n"),
            ["no `workspace = true` under [lints]"]
        );
        assert_eq!(
            text_violations("[lints.rust]\nworkspace = true\n"),
            ["no `workspace = true` under [lints]"]
        );
    }
}
