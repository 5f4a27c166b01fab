//! Quotas of tenants hold in a plugged-in tier, whatever the plugin does.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use kvstored_core::memory::SlotOwner;
use kvstored_core::quota::{QuotaLedger, QuotaSettings};
use kvstored_core::{
    Action, Arena, BlockHash, Durability, ErrorKind, Identity, Layout, NamespaceInfo, Operation, Result,
    SlotGuard, Tier,
};

use crate::support::{Directory, PATIENCE, plugins};

const TENANT: &str = "bounded";

struct Nobody;

impl SlotOwner for Nobody {
    fn release(&self, _slot: u32) {}
}

fn namespace(tenant: &str, model: &str) -> Arc<NamespaceInfo> {
    let identity = Identity {
        tenant: tenant.into(),
        model: model.into(),
        ..Identity::default()
    };
    Arc::new(NamespaceInfo::new(identity, Layout::uniform(1, 1, 4096).unwrap()).unwrap())
}

fn hash(number: u8) -> BlockHash {
    BlockHash::new(&[number; 16]).unwrap()
}

/// A ledger where the tenant may have that many blocks.
fn ledger(blocks: u64) -> Arc<QuotaLedger> {
    let mut settings = QuotaSettings::default();
    let bytes = blocks * namespace(TENANT, "").layout.image_bytes() as u64;
    settings.tenants.insert(TENANT.into(), bytes);
    Arc::new(QuotaLedger::new(settings))
}

/// Blocks that the tenant is charged for.
fn charged(ledger: &QuotaLedger) -> u64 {
    let usage = ledger.tenant_usage();
    let of_tenant = usage.iter().find(|usage| usage.name == TENANT).unwrap();
    of_tenant.used_bytes / namespace(TENANT, "").layout.image_bytes() as u64
}

/// Writes a block and waits for it.
fn write(tier: &dyn Tier, namespace: &Arc<NamespaceInfo>, number: u8) -> Result<()> {
    let bytes = namespace.layout.image_bytes();
    let arena = Arc::new(Arena::heap(bytes).unwrap());
    let (sender, ended) = channel();
    tier.submit(vec![Operation {
        namespace: namespace.clone(),
        hash: hash(number),
        action: Action::Write(Durability::Tier),
        buffer: SlotGuard::new(arena, Arc::new(Nobody), 0, 0, bytes),
        completion: Box::new(move |_, outcome| sender.send(outcome).unwrap()),
    }]);
    ended.recv_timeout(PATIENCE).expect("the operation ends")
}

/// How many of those blocks were taken; the others were over the quota.
fn write_some(tier: &dyn Tier, namespace: &Arc<NamespaceInfo>, numbers: std::ops::Range<u8>) -> usize {
    let outcomes = numbers.map(|number| write(tier, namespace, number));
    let taken = outcomes.filter(|outcome| match outcome {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
            false
        }
    });
    taken.count()
}

#[test]
fn a_tenant_gets_its_quota_and_no_more() {
    let directory = Directory::new();
    directory.copy_memory();
    directory.list();
    let quotas = ledger(10);
    let tier = directory.open_within("memory", &[], &quotas).unwrap();
    let (one, other, free) = (
        namespace(TENANT, "one"),
        namespace(TENANT, "other"),
        namespace("free", ""),
    );
    assert_eq!(write_some(&*tier, &one, 0..8), 8);
    assert_eq!(write_some(&*tier, &other, 0..8), 2);
    assert_eq!(write_some(&*tier, &free, 0..30), 30);
    assert_eq!(tier.statistics().refused_writes, 6);
    // blocks that are there already cost nothing
    assert_eq!(write_some(&*tier, &one, 0..8), 8);
    assert_eq!(tier.remove(&one, &[hash(0), hash(1), hash(99)]), 2);
    assert_eq!(write_some(&*tier, &other, 10..20), 2);
    assert_eq!(tier.purge(&other.namespace).unwrap(), 4);
    assert_eq!(charged(&quotas), 6);
    assert_eq!(write_some(&*tier, &one, 20..40), 4);
    tier.shutdown();
}

#[test]
fn what_the_plugin_evicts_is_given_back() {
    let directory = Directory::new();
    directory.copy_memory();
    directory.list();
    let (quotas, info) = (ledger(10), namespace(TENANT, ""));
    let capacity = (6 * info.layout.image_bytes()).to_string();
    let settings = [("capacity_bytes", capacity.as_str())];
    let tier = directory.open_within("memory", &settings, &quotas).unwrap();
    assert_eq!(write_some(&*tier, &info, 0..60), 60);
    assert_eq!(charged(&quotas), 6);
    assert_eq!(tier.statistics().blocks, 6);
    tier.shutdown();
}

#[test]
fn blocks_of_an_earlier_run_count_once_their_namespace_is_open() {
    let directory = Directory::new();
    directory.compile(&plugins().join("examples/c/files.c"), "files", &[]);
    directory.list();
    let blocks = directory.path().join("blocks");
    std::fs::create_dir(&blocks).unwrap();
    let settings = [("path", blocks.to_str().unwrap())];
    let info = namespace(TENANT, "");
    let tier = directory.open_within("files", &settings, &ledger(10)).unwrap();
    assert_eq!(write_some(&*tier, &info, 0..9), 9);
    tier.shutdown();
    // fewer are allowed now than there are
    let quotas = ledger(7);
    let tier = directory.open_within("files", &settings, &quotas).unwrap();
    tier.open_namespace(&info).unwrap();
    assert_eq!(charged(&quotas), 7);
    assert_eq!(write_some(&*tier, &info, 20..22), 0);
    assert_eq!(tier.remove(&info, &[hash(0), hash(1), hash(2)]), 3);
    assert_eq!(charged(&quotas), 6);
    assert_eq!(write_some(&*tier, &info, 20..22), 1);
    tier.shutdown();
}

#[test]
fn a_write_that_takes_too_long_is_charged_until_the_plugin_is_done_with_it() {
    let directory = Directory::new();
    directory.compile(&plugins().join("abi/tests/plugin/faulty.c"), "faulty", &[]);
    directory.list();
    let (quotas, info) = (ledger(1), namespace(TENANT, ""));
    let (settings, timeout) = ([("fault", "never")], Duration::from_secs(1));
    let tier = directory
        .open_with("faulty", timeout, &settings, Some(&quotas))
        .unwrap();
    let error = write(&*tier, &info, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert_eq!(charged(&quotas), 1);
    // closing makes this plugin end the operation
    tier.shutdown();
    assert_eq!(charged(&quotas), 0);
}
