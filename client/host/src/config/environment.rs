//! What the machine and the user's session contribute to the defaults.

use std::fs;
use std::path::PathBuf;

/// The facts that defaults depend on. Plain data, so that a test can invent a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// User the process runs as.
    pub user: u32,
    /// Memory that the process may use, in bytes; 0 where it can't be told.
    pub memory_bytes: u64,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_directory: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub data_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `KVSTORED_LOG`.
    pub log_level: Option<String>,
    /// The program that tries plugins in a process of its own: this one, where it's `kvstored`, else `KVSTORED_PROGRAM`, else
    /// the first `kvstored` on the `PATH`.
    pub plugin_probe: Option<PathBuf>,
    /// `MOONCAKE_CONFIG_PATH`.
    pub mooncake_config: Option<PathBuf>,
    /// `MOONCAKE_MASTER`.
    pub mooncake_master: Option<String>,
    /// `MOONCAKE_GLOBAL_SEGMENT_SIZE`.
    pub mooncake_global_segment_size: Option<String>,
}

impl Environment {
    /// This process's.
    pub fn current() -> Self {
        let path = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.trim().is_empty());
        Self {
            user: rustix::process::getuid().as_raw(),
            memory_bytes: memory_bytes(),
            runtime_directory: path("XDG_RUNTIME_DIR"),
            data_home: path("XDG_DATA_HOME"),
            home: path("HOME"),
            log_level: text("KVSTORED_LOG"),
            plugin_probe: own_program()
                .or_else(|| path("KVSTORED_PROGRAM"))
                .or_else(program_on_path),
            mooncake_config: text("MOONCAKE_CONFIG_PATH").map(PathBuf::from),
            mooncake_master: text("MOONCAKE_MASTER"),
            mooncake_global_segment_size: text("MOONCAKE_GLOBAL_SEGMENT_SIZE"),
        }
    }

    /// The socket where none is named.
    pub fn default_socket(&self) -> PathBuf {
        match &self.runtime_directory {
            Some(directory) if directory.as_os_str().len() < 80 => directory.join("kvstored.sock"),
            _ => PathBuf::from(format!("/tmp/kvstored-{}/kvstored.sock", self.user)),
        }
    }

    /// The storage directory where none is named.
    pub fn default_storage(&self) -> PathBuf {
        if self.user == 0 {
            return "/var/lib/kvstored".into();
        }
        let below_home = self.home.as_ref().map(|home| home.join(".local/share"));
        self.data_home
            .clone()
            .or(below_home)
            .map_or_else(|| "/var/lib/kvstored".into(), |data| data.join("kvstored"))
    }

    /// The cache buffer's capacity where none is given: a quarter of the memory, at most 256 GiB. A buffer that only
    /// stages blocks for the tiers below takes at most 1 GiB.
    pub fn default_cache_bytes(&self, keeps_blocks: bool) -> u64 {
        const WHERE_UNKNOWN: u64 = 1 << 30;
        const LEAST: u64 = 64 << 20;
        let most = if keeps_blocks { 256 << 30 } else { 1 << 30 };
        let quarter = if self.memory_bytes == 0 {
            WHERE_UNKNOWN
        } else {
            (self.memory_bytes / 4).max(LEAST)
        };
        (quarter.min(most) >> 20) << 20
    }

    /// The largest cache buffer that leaves the machine alive: seven eighths of its memory.
    pub fn largest_cache_bytes(&self) -> u64 {
        if self.memory_bytes == 0 {
            u64::MAX
        } else {
            self.memory_bytes / 8 * 7
        }
    }
}

/// This program, if it knows the command that tries plugins.
fn own_program() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    (program.file_name()? == "kvstored").then_some(program)
}

/// The first `kvstored` on the `PATH` that may be run.
fn program_on_path() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("kvstored"))
        .find(|program| program.is_file() && rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok())
}

/// The machine's memory, or the control group's limit where that is lower.
fn memory_bytes() -> u64 {
    let total = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| meminfo_total(&text))
        .unwrap_or(0);
    let own = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("0::/").map(str::to_owned))
    });
    let groups = [
        own.map(|group| format!("/sys/fs/cgroup/{group}/memory.max")),
        Some("/sys/fs/cgroup/memory.max".to_owned()),
        Some("/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned()),
    ];
    groups
        .into_iter()
        .flatten()
        .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .filter(|limit| *limit > 0)
        .fold(total, u64::min)
}

fn meminfo_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_the_session() {
        let mut environment = Environment {
            user: 1000,
            ..Environment::default()
        };
        assert_eq!(
            environment.default_socket(),
            PathBuf::from("/tmp/kvstored-1000/kvstored.sock")
        );
        assert_eq!(environment.default_storage(), PathBuf::from("/var/lib/kvstored"));
        environment.home = Some("/home/someone".into());
        assert_eq!(
            environment.default_storage(),
            PathBuf::from("/home/someone/.local/share/kvstored")
        );
        environment.data_home = Some("/data".into());
        assert_eq!(environment.default_storage(), PathBuf::from("/data/kvstored"));
        environment.runtime_directory = Some("/run/user/1000".into());
        assert_eq!(
            environment.default_socket(),
            PathBuf::from("/run/user/1000/kvstored.sock")
        );
        environment.user = 0;
        assert_eq!(environment.default_storage(), PathBuf::from("/var/lib/kvstored"));
    }

    #[test]
    fn the_cache_takes_a_quarter_up_to_a_bound() {
        let machine = |gibibytes: u64| Environment {
            memory_bytes: gibibytes << 30,
            ..Environment::default()
        };
        assert_eq!(machine(64).default_cache_bytes(true), 16 << 30);
        assert_eq!(machine(2048).default_cache_bytes(true), 256 << 30);
        assert_eq!(machine(64).default_cache_bytes(false), 1 << 30);
        assert_eq!(machine(0).default_cache_bytes(true), 1 << 30);
        assert_eq!(machine(64).largest_cache_bytes(), 56 << 30);
    }

    #[test]
    fn memory_is_read_in_kilobytes() {
        assert_eq!(
            meminfo_total("MemTotal:       24684096 kB\nMemFree: 1 kB\n"),
            Some(24_684_096 << 10)
        );
        assert_eq!(meminfo_total("nothing"), None);
        assert!(memory_bytes() > 0);
    }
}
