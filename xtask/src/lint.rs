//! `cargo xtask lint`: everything that judges the code without running it.

use std::process::Command;

use crate::process::{self, Failure, Outcome};
use crate::setup;
use crate::workspace::Workspace;
use crate::{edges, fuzz, manifest, python};

const CARGO_DENY: &str = "cargo-deny";

/// All of it, cheapest first. Goes on after a failure and fails at the end, so that one run tells everything.
pub fn run(workspace: &Workspace) -> Outcome {
    let failures: Vec<Failure> = [format, dependency_edges, python::lint, clippy, deny]
        .iter()
        .filter_map(|step| step(workspace).err())
        .inspect(|failure| eprintln!("lint: {failure}"))
        .collect();
    if failures.is_empty() {
        eprintln!("\nlint: all clean");
        return Ok(());
    }
    let lines: Vec<String> = failures.iter().map(ToString::to_string).collect();
    Err(format!("lint failed:\n  {}", lines.join("\n  ")).into())
}

/// Formatting of the workspace and of the fuzz targets.
pub fn format(workspace: &Workspace) -> Outcome {
    process::run(cargo(workspace).args(["fmt", "--all", "--check"]))?;
    let fuzz = fuzz::manifest(workspace);
    process::run(
        cargo(workspace)
            .args(["fmt", "--check", "--manifest-path"])
            .arg(fuzz),
    )
}

/// Who depends on whom, and with which versions and lints.
pub fn dependency_edges(workspace: &Workspace) -> Outcome {
    let mut found = edges::violations(workspace);
    found.extend(manifest::violations(workspace)?);
    if found.is_empty() {
        eprintln!(
            "\ndependency edges: {} crates, all as planned",
            workspace.packages.len()
        );
        return Ok(());
    }
    Err(format!("dependency edges:\n    {}", found.join("\n    ")).into())
}

/// Clippy over every target, warnings denied.
pub fn clippy(workspace: &Workspace) -> Outcome {
    process::run(cargo(workspace).args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// Builds what the next needs and a fresh machine lacks.
pub fn prepare_deny(workspace: &Workspace) -> Outcome {
    setup::cargo_tool(workspace, CARGO_DENY).map(drop)
}

/// Licences, banned crates and sources. Advisories need a database from the network and are left out.
pub fn deny(workspace: &Workspace) -> Outcome {
    let program = setup::cargo_tool(workspace, CARGO_DENY)?;
    let mut command = Command::new(program);
    command
        .current_dir(&workspace.root)
        .args(["--all-features", "check", "--hide-inclusion-graph"]);
    process::run(command.args(["licenses", "bans", "sources"]))
}

fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new(process::cargo());
    command.current_dir(&workspace.root);
    command
}
