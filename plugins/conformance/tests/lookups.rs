//! What the kit makes of lookups: a tier may find out late what it has, but both kinds of lookup have to agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kvstored_backends::posix::{PosixSettings, PosixTier};
use kvstored_conformance::{Options, Report, Subject, run};
use kvstored_core::{
    BlockHash, BlockKey, Namespace, NamespaceInfo, Operation, Result, Runtime, Tier, TierStatistics,
};

/// How lookups of a tier differ from those of the Posix tier in it.
#[derive(Clone, Copy, Debug)]
enum Lookups {
    /// So many questions after it was opened over blocks of an earlier opening, it doesn't know of them yet.
    Late(u64),
    /// Those on the prefix never find anything.
    WithoutPrefix,
}

struct Altered {
    inner: Arc<PosixTier>,
    lookups: Lookups,
    unanswered: AtomicU64,
}

impl Altered {
    fn answers(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        self.unanswered
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_err()
    }
}

impl Tier for Altered {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn open_namespace(&self, namespace: &Arc<NamespaceInfo>) -> Result<()> {
        self.inner.open_namespace(namespace)
    }

    fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        if self.answers() {
            self.inner.lookup(namespace, hashes, present);
        }
    }

    fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        if !self.answers() || matches!(self.lookups, Lookups::WithoutPrefix) {
            return 0;
        }
        self.inner.lookup_on_prefix(namespace, hashes)
    }

    fn submit(&self, batch: Vec<Operation>) {
        self.inner.submit(batch);
    }

    fn remove(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> u64 {
        self.inner.remove(namespace, hashes)
    }

    fn purge(&self, namespace: &Namespace) -> Result<u64> {
        self.inner.purge(namespace)
    }

    fn statistics(&self) -> TierStatistics {
        self.inner.statistics()
    }

    fn list(&self, namespace: Option<&Namespace>, after: Option<&BlockKey>, limit: usize) -> Vec<BlockKey> {
        self.inner.list(namespace, after, limit)
    }

    fn namespaces(&self) -> Vec<(Namespace, u64)> {
        self.inner.namespaces()
    }

    fn drain(&self, deadline: Instant) -> Result<()> {
        self.inner.drain(deadline)
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }
}

struct Altering {
    directory: tempfile::TempDir,
    lookups: Lookups,
}

impl Subject for Altering {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        let settings = PosixSettings {
            directories: vec![self.directory.path().to_owned()],
            capacity_bytes: 32 << 20,
            ..PosixSettings::default()
        };
        let inner = PosixTier::open(settings, Runtime::system(), None)?;
        let unanswered = match self.lookups {
            Lookups::Late(questions) if inner.statistics().blocks > 0 => questions,
            Lookups::Late(_) | Lookups::WithoutPrefix => 0,
        };
        Ok(Arc::new(Altered {
            inner,
            lookups: self.lookups,
            unanswered: AtomicU64::new(unanswered),
        }))
    }

    fn survives_restart(&self) -> bool {
        true
    }
}

fn report(directory: tempfile::TempDir, lookups: Lookups) -> Report {
    let options = Options {
        model_steps: 20,
        ..Options::default()
    };
    run(&mut Altering { directory, lookups }, &options, &Runtime::system())
}

#[test]
fn blocks_may_come_to_light_between_any_two_lookups() {
    for questions in 0..5 {
        let report = report(tempfile::tempdir().unwrap(), Lookups::Late(questions));
        assert!(report.passed(), "{questions} questions: {report}");
    }
}

#[test]
fn lookups_that_contradict_each_other_fail() {
    let report = report(tempfile::tempdir().unwrap(), Lookups::WithoutPrefix).to_string();
    assert!(
        report.contains("lookup says true, lookup_on_prefix 0"),
        "{report}"
    );
}
