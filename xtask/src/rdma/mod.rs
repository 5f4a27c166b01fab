//! `cargo xtask rdma`: run the RDMA checks in a virtual machine whose kernel has a soft-RoCE device.
//!
//! A machine for development has no RDMA device, and often no right to load the kernel module that makes one up. So
//! Debian's stock kernel is booted under qemu, emulated so that it needs no KVM, with an initial file system that holds
//! nothing but busybox, the modules, and the programs with their libraries. It takes some minutes where the processor is
//! emulated.

mod archive;
mod image;
mod kernel;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use clap::Args;

use crate::process::{self, Failure, Outcome};
use crate::setup;
use crate::workspace::Workspace;
use image::Program;
use kernel::Kernel;

/// What the rig needs from Debian.
const PACKAGES: [&str; 6] = [
    "qemu-system-x86",
    "busybox-static",
    "kmod",
    "libibverbs1",
    "ibverbs-providers",
    "iproute2",
];
/// A file of each of them, which shows that it's installed.
const FILES: [&str; 6] = [
    "/usr/bin/qemu-system-x86_64",
    "/bin/busybox",
    "/sbin/modprobe",
    "/usr/lib/x86_64-linux-gnu/libibverbs.so.1",
    "/etc/libibverbs.d/rxe.driver",
    "/sbin/ip",
];
/// soft-RoCE checks its packets with a CRC that it asks the kernel for.
const MODULES: [&str; 5] = ["dummy", "crc32_generic", "crc32-pclmul", "rdma_rxe", "ib_uverbs"];
const MEMORY_MIB: u32 = 1024;
const STATUS: &str = "guest-status: ";

/// A program that runs in the virtual machine.
struct Guest {
    package: &'static str,
    kind: GuestKind,
    arguments: &'static str,
}

enum GuestKind {
    /// An example of the package.
    Example(&'static str),
    /// The unit tests of the package's library.
    Tests,
}

const GUESTS: [Guest; 3] = [
    Guest {
        package: "kvstored-verbs",
        kind: GuestKind::Example("soft-roce"),
        arguments: "",
    },
    Guest {
        package: "kvstored-transfer",
        kind: GuestKind::Tests,
        arguments: "over_rdma --ignored --test-threads=1",
    },
    Guest {
        package: "kvstored-pool",
        kind: GuestKind::Tests,
        arguments: "over_rdma --ignored --test-threads=1",
    },
];

/// How to run it.
#[derive(Args)]
pub struct Options {
    /// Seconds before the machine is switched off as hung
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// Whether all tests have been built, so that building as they are builds nothing
    #[arg(skip)]
    is_built: bool,
}

impl Options {
    /// With which it's a step of all tests.
    pub fn short() -> Self {
        Self {
            limit: 600,
            is_built: true,
        }
    }
}

/// Why it can't be run here, if it can't.
pub fn unavailable() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some("the rig is for x86_64".to_owned());
    }
    let missing = missing_packages();
    (!missing.is_empty() && !setup::may_install()).then(|| format!("install {}", missing.join(" ")))
}

fn missing_packages() -> Vec<&'static str> {
    let pairs = PACKAGES.into_iter().zip(FILES);
    pairs
        .filter(|(_, file)| !Path::new(file).exists())
        .map(|(package, _)| package)
        .collect()
}

/// Runs all guests; hands each line that they print to `inspect`. Fails unless all checks passed.
pub fn run(workspace: &Workspace, options: &Options, inspect: impl Fn(&str) + Sync) -> Outcome {
    if let Some(reason) = unavailable() {
        return Err(reason.into());
    }
    let (folder, kernel) = install(workspace)?;
    let programs = GUESTS
        .iter()
        .map(|guest| build(workspace, guest, options.is_built))
        .collect::<Result<Vec<_>, _>>()?;
    let image = folder.join("initrd.cpio");
    image::write(
        &image,
        &kernel,
        &MODULES,
        &programs,
        &workspace.root.join("xtask/rdma/init.sh"),
    )?;
    boot(&kernel, &image, options, inspect)
}

/// Fetches what the machine is made of, where it can be run.
pub fn prepare(workspace: &Workspace) -> Outcome {
    if unavailable().is_some() {
        return Ok(());
    }
    install(workspace).map(drop)
}

fn install(workspace: &Workspace) -> Result<(PathBuf, Kernel), Failure> {
    for package in missing_packages() {
        setup::debian_package(package)?;
    }
    let folder = workspace.target.join("rdma");
    std::fs::create_dir_all(&folder)?;
    let kernel = Kernel::fetch(&folder)?;
    Ok((folder, kernel))
}

/// The same as a step of all tests: where it can't be run, that is said and nothing fails.
pub fn run_if_possible(workspace: &Workspace, inspect: impl Fn(&str) + Sync) -> Outcome {
    if let Some(reason) = unavailable() {
        eprintln!("\nSKIPPED: RDMA in a virtual machine: {reason}");
        return Ok(());
    }
    run(workspace, &Options::short(), inspect)
}

fn build(workspace: &Workspace, guest: &Guest, with_all: bool) -> Result<Program, Failure> {
    let mut command = Command::new(process::cargo());
    command.current_dir(&workspace.root);
    let package = guest.package;
    let file = match guest.kind {
        GuestKind::Example(name) => {
            command.args(["build", "--example", name]);
            if with_all {
                command.arg("--workspace");
            } else {
                command.args(["--package", package]);
            }
            process::run(&mut command)?;
            workspace.target.join("debug/examples").join(name)
        }
        GuestKind::Tests => {
            // whose name only cargo knows
            command.args(["test", "--no-run", "--message-format", "json"]);
            if with_all {
                command.arg("--workspace");
            } else {
                command.args(["--package", package, "--lib"]);
            }
            let messages = process::output(&mut command)?;
            test_program(&messages, package).ok_or_else(|| format!("cargo built no tests of {package}"))?
        }
    };
    Ok(Program {
        file,
        name: package,
        arguments: guest.arguments,
    })
}

/// The test program of a package's library among the messages of a build.
fn test_program(messages: &str, package: &str) -> Option<PathBuf> {
    let library = package.replace('-', "_");
    let parsed = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = parsed.filter(|message| {
        message["profile"]["test"] == true && message["target"]["name"] == library.as_str()
    });
    programs.find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

fn boot(kernel: &Kernel, image: &Path, options: &Options, inspect: impl Fn(&str) + Sync) -> Outcome {
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
    ]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
    ]);
    command.arg("-m").arg(MEMORY_MIB.to_string());
    command
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(image);
    // the clock of an emulated processor is slow and jumps; the kernel must not distrust it for that
    command.args([
        "-append",
        "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check",
    ]);
    let status = Mutex::new(None);
    process::run_limited(&mut command, Duration::from_secs(options.limit), |line| {
        if let Some(code) = line.strip_prefix(STATUS)
            && let Ok(mut status) = status.lock()
        {
            *status = code.trim().parse::<i32>().ok();
        }
        inspect(line);
    })?;
    match status.into_inner() {
        Ok(Some(0)) => Ok(()),
        Ok(Some(_)) => Err("checks failed in the virtual machine".into()),
        _ => Err("the virtual machine ended before its checks did".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_program_is_found_among_the_messages() {
        let messages = r#"
            {"reason":"compiler-artifact","target":{"name":"a_b"},"profile":{"test":false},"executable":"/target/debug/other"}
            not json
            {"reason":"compiler-artifact","target":{"name":"c"},"profile":{"test":true},"executable":"/target/debug/deps/c-1"}
            {"reason":"compiler-artifact","target":{"name":"a_b"},"profile":{"test":true},"executable":"/target/debug/deps/a_b-1"}
            {"reason":"build-finished","success":true}
        "#;
        assert_eq!(
            test_program(messages, "a-b"),
            Some(PathBuf::from("/target/debug/deps/a_b-1"))
        );
        assert_eq!(test_program("{}", "a-b"), None);
    }
}
