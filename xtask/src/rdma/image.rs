//! The first file system of the virtual machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::archive::Archive;
use super::kernel::Kernel;
use crate::process::{self, Failure, Outcome};

/// The device's provider, which libibverbs opens by the name in the other file.
const PROVIDERS: &str = "/usr/lib/x86_64-linux-gnu/libibverbs";
const PROVIDER_PREFIX: &str = "librxe-";
const DRIVER_FILE: &str = "/etc/libibverbs.d/rxe.driver";
/// What programs open at run time.
const OPENED: [&str; 1] = ["/usr/lib/x86_64-linux-gnu/libibverbs.so.1"];
/// Programs of this machine that the first program uses.
const TOOLS: [&str; 2] = ["ip", "rdma"];

/// A program to be run.
pub struct Program {
    /// Its file here.
    pub file: PathBuf,
    /// What it's called in the virtual machine.
    pub name: &'static str,
    /// What it's started with.
    pub arguments: &'static str,
}

/// Writes it: busybox, modules, and programs with the libraries that they need.
pub fn write(path: &Path, kernel: &Kernel, modules: &[&str], programs: &[Program], init: &Path) -> Outcome {
    let mut archive = Archive::create(path)?;
    archive.add_file("init", init)?;
    archive.add_file("busybox", Path::new("/bin/busybox"))?;
    let mut order = String::new();
    for file in kernel.modules(modules)? {
        let name = name_of(&file)?;
        archive.add_file(&format!("modules/{name}"), &file)?;
        order.push_str(name);
        order.push('\n');
    }
    archive.add("modules/order", order.as_bytes())?;

    let mut libraries = BTreeSet::new();
    let mut list = String::new();
    for Program {
        file,
        name,
        arguments,
    } in programs
    {
        archive.add_file(&format!("host/{name}"), file)?;
        for part in [name, " ", arguments, "\n"] {
            list.push_str(part);
        }
        libraries.extend(needed(file)?);
    }
    archive.add("programs.list", list.as_bytes())?;
    for tool in TOOLS {
        let program = find_tool(tool)?;
        archive.add_file(&format!("host/{tool}"), &program)?;
        libraries.extend(needed(&program)?);
    }
    let opened = OPENED.iter().map(PathBuf::from).chain([provider()?]);
    for library in opened {
        libraries.extend(needed(&library)?);
        libraries.insert(library);
    }
    for library in &libraries {
        archive.add_file(&library.to_string_lossy(), library)?;
    }
    archive.add_file(DRIVER_FILE, Path::new(DRIVER_FILE))?;
    archive.finish()?;
    Ok(())
}

fn name_of(path: &Path) -> Result<&str, Failure> {
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(name.ok_or_else(|| format!("{} has no name", path.display()))?)
}

fn find_tool(name: &str) -> Result<PathBuf, Failure> {
    let places = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"];
    let found = places
        .iter()
        .map(|place| Path::new(place).join(name))
        .find(|path| path.exists());
    Ok(found.ok_or_else(|| format!("{name} isn't installed"))?)
}

fn provider() -> Result<PathBuf, Failure> {
    let entries = std::fs::read_dir(PROVIDERS)?
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    let is_it = |path: &PathBuf| name_of(path).is_ok_and(|name| name.starts_with(PROVIDER_PREFIX));
    let mut found = entries.into_iter();
    Ok(found
        .find(is_it)
        .ok_or_else(|| format!("no soft-RoCE provider in {PROVIDERS}"))?)
}

/// The libraries that a program or library needs, as the dynamic linker finds them.
fn needed(program: &Path) -> Result<BTreeSet<PathBuf>, Failure> {
    let text = process::output(Command::new("ldd").arg(program))?;
    Ok(parse_needed(&text))
}

fn parse_needed(text: &str) -> BTreeSet<PathBuf> {
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    words
        .map(|word| PathBuf::from(word.trim_end_matches(':')))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_list_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd1a5f2000)\n\
                    \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f3a2c000000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f3a2be00000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f3a2c2f0000)\n";
        let found: Vec<String> = parse_needed(text)
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        assert_eq!(
            found,
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib/x86_64-linux-gnu/libgcc_s.so.1",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }
}
