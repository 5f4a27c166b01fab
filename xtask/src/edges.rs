//! Who may depend on whom. The folder of a crate decides; folders and arrows are those of the house plan.

use crate::workspace::{Package, Workspace};

/// Crates that `core` must never use itself: no sockets, no file I/O, no Python.
const FORBIDDEN_IN_CORE: [&str; 5] = ["tokio", "rustix", "io-uring", "libc", "pyo3"];

/// Every edge that breaks a rule, in words.
pub fn violations(workspace: &Workspace) -> Vec<String> {
    workspace.packages.iter().flat_map(package_violations).collect()
}

fn package_violations(package: &Package) -> Vec<String> {
    let from = house_folder(&package.folder);
    let mut found = Vec::new();
    for dependency in package
        .dependencies
        .iter()
        .filter(|dependency| !dependency.development)
    {
        if let Some(to) = dependency.folder.as_deref().map(house_folder)
            && !allowed(&from, &to)
        {
            found.push(format!(
                "{from} may not depend on {to} ({} in {}/Cargo.toml)",
                dependency.name, package.folder
            ));
        }
        if from == "core" && FORBIDDEN_IN_CORE.contains(&dependency.name.as_str()) {
            found.push(format!("core may not depend on {}", dependency.name));
        }
    }
    found
}

/// The folder that the rules know: the first component of the path, or the first two below `plugins` and of
/// `client/host`.
fn house_folder(path: &str) -> String {
    let two = path.starts_with("plugins/") || path == "client/host";
    let components = if two { 2 } else { 1 };
    path.split('/').take(components).collect::<Vec<_>>().join("/")
}

/// Whether a crate in folder `from` may use one in folder `to`, outside its tests.
fn allowed(from: &str, to: &str) -> bool {
    if from == to {
        return true;
    }
    match to {
        "server" => return matches!(from, "benches" | "tests"),
        "python" => return false,
        _ => {}
    }
    match from {
        "benches" | "fuzz" | "tests" | "xtask" => true,
        // the conformance kit asks the tier contract, whoever is behind it
        "backends" | "transfer" | "plugins/abi" | "plugins/conformance" => to == "core",
        "client" => matches!(to, "core" | "backends"),
        // it builds pipelines from settings, and their tiers lie in these folders: the pool on the transfer layer, plugins
        // behind their loader
        "client/host" => matches!(to, "core" | "backends" | "client" | "transfer" | "plugins/abi"),
        "server" | "python" => {
            matches!(
                to,
                "core" | "backends" | "client" | "client/host" | "plugins/abi" | "transfer"
            ) || (from == "server" && to == "plugins/conformance")
        }
        // the Posix tier with another I/O engine: its format and everything else are that tier's own code
        "plugins/ds3fs" => matches!(to, "plugins/abi" | "backends" | "core"),
        plugin if plugin.starts_with("plugins/") => to == "plugins/abi",
        // core, and every folder that the house plan doesn't have yet
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;
    use std::path::PathBuf;

    fn package(folder: &str, dependencies: &[(&str, bool)]) -> Package {
        let dependencies = dependencies
            .iter()
            .map(|(name, development)| Dependency {
                name: (*name).to_owned(),
                development: *development,
                folder: name
                    .contains('/')
                    .then(|| name.trim_start_matches("./").to_owned()),
            })
            .collect();
        Package {
            folder: folder.to_owned(),
            manifest: PathBuf::new(),
            dependencies,
        }
    }

    fn workspace(packages: Vec<Package>) -> Workspace {
        Workspace {
            root: PathBuf::new(),
            target: PathBuf::new(),
            packages,
        }
    }

    #[test]
    fn the_house_plan_itself_is_allowed() {
        let found = violations(&workspace(vec![
            package("core", &[("bytes", false)]),
            package("backends", &[("./core", false), ("libc", false)]),
            package("client", &[("./core", false), ("./backends", false)]),
            package(
                "client/host",
                &[("./core", false), ("./client", false), ("./transfer/pool", false)],
            ),
            package("transfer", &[("./core", false)]),
            package("plugins/abi", &[("./core", false)]),
            package(
                "plugins/ds3fs",
                &[("./plugins/abi", false), ("./backends", false), ("./core", false)],
            ),
            package(
                "plugins/ascend",
                &[("./plugins/abi/sdk", false), ("libloading", false)],
            ),
            package(
                "plugins/emulators/cuda",
                &[("./plugins/emulators/ascendcl", false)],
            ),
            package("plugins/conformance", &[("./core", false), ("./backends", true)]),
            package(
                "server",
                &[
                    ("./core", false),
                    ("./client", false),
                    ("./transfer", false),
                    ("./plugins/abi", false),
                    ("./plugins/conformance", false),
                ],
            ),
            package(
                "python",
                &[("./core", false), ("./backends", false), ("./client", false)],
            ),
            package("benches", &[("./server", false), ("./transfer", false)]),
            package("tests", &[("./server", false)]),
            package("xtask", &[("./core", false)]),
        ]));
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn an_edge_against_the_arrows_is_named() {
        let found = violations(&workspace(vec![package("core", &[("./backends", false)])]));
        assert_eq!(
            found,
            ["core may not depend on backends (./backends in core/Cargo.toml)"]
        );
        for (from, to) in [
            ("backends", "client"),
            ("client", "transfer"),
            ("client", "client/host"),
            ("transfer", "client"),
            ("transfer", "backends"),
            ("plugins/abi", "backends"),
            ("plugins/cuda", "core"),
            ("plugins/cuda", "backends"),
            ("plugins/emulators", "core"),
            ("plugins/conformance", "backends"),
            ("python", "plugins/conformance"),
            ("plugins/ds3fs", "plugins/cuda"),
            ("plugins/ascend", "plugins/emulators"),
            ("plugins/abi", "plugins/emulators"),
            ("plugins/emulators", "core"),
            ("server", "benches"),
            ("newcomer", "core"),
        ] {
            assert!(!allowed(from, to), "{from} -> {to}");
        }
    }

    #[test]
    fn only_benches_and_tests_use_the_server_and_nobody_uses_python() {
        for from in [
            "core",
            "backends",
            "client",
            "transfer",
            "plugins/abi",
            "python",
            "fuzz",
            "xtask",
        ] {
            assert!(!allowed(from, "server"), "{from}");
        }
        for from in ["core", "server", "benches", "tests", "fuzz", "xtask"] {
            assert!(!allowed(from, "python"), "{from}");
        }
    }

    #[test]
    fn crates_of_one_folder_may_use_each_other_and_tests_may_use_anything() {
        let found = violations(&workspace(vec![
            package("core/format", &[("./core/io", false)]),
            package("backends", &[("./client", true)]),
        ]));
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn core_stays_free_of_sockets_and_files() {
        let found = violations(&workspace(vec![
            package("core", &[("tokio", false), ("libc", true)]),
            package("core/io", &[("rustix", false)]),
        ]));
        assert_eq!(
            found,
            ["core may not depend on tokio", "core may not depend on rustix"]
        );
    }
}
