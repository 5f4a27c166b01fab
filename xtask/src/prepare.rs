//! What the steps of `cargo xtask test` download or build when a machine lacks it, fetched while the first ones compile.

use std::thread::Scope;

use crate::process::Outcome;
use crate::workspace::Workspace;
use crate::{fuzz, lint, python, rdma, setup, test};

type Preparation = fn(&Workspace) -> Outcome;

/// Starts all of it beside whatever the caller does in the scope. Every step makes sure by itself of what it needs: it waits
/// for what is under way, and what failed here is tried again there, and told.
pub fn start<'scope>(scope: &'scope Scope<'scope, '_>, workspace: &'scope Workspace) {
    // one waits for the network mostly, the other fills the gaps that compiling leaves
    let threads: [&[(&str, Preparation)]; 2] = [
        &[("Python", python::prepare)],
        &[
            ("programs", programs),
            ("cargo-deny", lint::prepare_deny),
            ("the virtual machine", rdma::prepare),
        ],
    ];
    for preparations in threads {
        scope.spawn(move || {
            for (name, prepare) in preparations {
                if let Err(error) = prepare(workspace) {
                    eprintln!("preparing {name}: {error}");
                }
            }
        });
    }
}

fn programs(_: &Workspace) -> Outcome {
    for (program, package) in [test::ETCD, python::OPENSSL, fuzz::COMPILER] {
        setup::debian_program(program, package)?;
    }
    Ok(())
}
