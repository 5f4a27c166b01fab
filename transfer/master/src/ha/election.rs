//! Being elected, leading, and following.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use tonic::transport::Endpoint;

use super::Leadership;
use super::etcd::{Change, Claim, Etcd, members};
use crate::server::{Core, HaSettings};
use crate::state::MAX_EPOCH;

/// How long to wait after etcd didn't answer.
const RETRY: Duration = Duration::from_millis(500);
/// How often the epoch is tried to be set when others interfere.
const EPOCH_ATTEMPTS: usize = 8;

/// What an election needs to know.
pub(crate) struct Election {
    members: Vec<Endpoint>,
    leader_key: Vec<u8>,
    epoch_key: Vec<u8>,
    address: String,
    lease: Duration,
    leadership: Arc<Leadership>,
    core: Arc<Core>,
    runtime: Runtime,
}

impl Election {
    /// Checks the settings. `address` is where others reach this master.
    pub fn new(
        settings: &HaSettings,
        address: String,
        leadership: Arc<Leadership>,
        core: Arc<Core>,
        runtime: Runtime,
    ) -> Result<Self> {
        let prefix = format!("/kvstored/master/{}", settings.cluster);
        Ok(Self {
            members: members(settings)?,
            leader_key: format!("{prefix}/leader").into_bytes(),
            epoch_key: format!("{prefix}/epoch").into_bytes(),
            address,
            lease: settings.lease,
            leadership,
            core,
            runtime,
        })
    }

    fn now(&self) -> Instant {
        self.runtime.clock.now()
    }
}

/// Follows and leads in turn, until the task is dropped or `stop` resolves; then a leader steps down at once, so that
/// another takes over without waiting for the lease.
pub(crate) async fn run(election: Election, stop: impl Future<Output = ()>) {
    let mut stop = std::pin::pin!(stop);
    let mut turn = 0;
    let mut complained = false;
    loop {
        let Some(member) = election.members.get(turn % election.members.len().max(1)) else {
            return;
        };
        let etcd = tokio::select! {
            etcd = Etcd::connect(member) => etcd,
            () = &mut stop => return,
        };
        let outcome = match etcd {
            Ok(etcd) => {
                complained = false;
                election.take_turns(&etcd, stop.as_mut()).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => return,
            Err(error) if !std::mem::replace(&mut complained, true) => {
                tracing::warn!(%error, "the election waits for etcd");
            }
            Err(_) => {}
        }
        turn += 1;
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = &mut stop => return,
        }
    }
}

impl Election {
    /// Follows and leads as long as etcd answers. Returns without an error when told to stop.
    async fn take_turns(
        &self,
        etcd: &Etcd,
        mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<()> {
        loop {
            let (leader, revision) = etcd.get(&self.leader_key).await?;
            if let Some(leader) = leader {
                let address = String::from_utf8_lossy(&leader.value).into_owned();
                tracing::info!(leader = %address, "following");
                self.leadership.set_leader(Some(address));
                tokio::select! {
                    followed = self.follow(etcd, revision + 1) => followed?,
                    () = &mut stop => return Ok(()),
                }
            }
            self.leadership.set_leader(None);
            let asked_at = self.now();
            let (lease, runs) = etcd.grant(self.lease).await?;
            match etcd.claim(&self.leader_key, self.address.as_bytes(), lease).await {
                Ok(Claim::Won(revision)) => {
                    let led = tokio::select! {
                        led = self.lead(etcd, lease, asked_at + runs, revision) => led,
                        () = &mut stop => Ok(()),
                    };
                    self.leadership.end();
                    self.leadership.set_leader(None);
                    self.core.end_term();
                    let stopped = led.is_ok();
                    // a leader that goes lets the next one in at once; if this fails the lease runs out
                    if let Err(error) = etcd.revoke(lease).await {
                        tracing::debug!(%error, "the leader's lease runs out by itself");
                    }
                    if stopped {
                        return Ok(());
                    }
                    led?;
                }
                Ok(Claim::Lost(leader)) => {
                    let address = String::from_utf8_lossy(&leader.value).into_owned();
                    self.leadership.set_leader(Some(address));
                    etcd.revoke(lease).await?;
                }
                Err(error) => {
                    // the claim may have reached etcd all the same
                    let _ = etcd.revoke(lease).await;
                    return Err(error);
                }
            }
        }
    }

    /// Waits until the leader's key is gone.
    async fn follow(&self, etcd: &Etcd, from: i64) -> Result<()> {
        let mut watch = etcd.watch(&self.leader_key, from).await?;
        loop {
            match watch.next().await? {
                Change::Deleted => return Ok(()),
                Change::Set(value) => {
                    self.leadership
                        .set_leader(Some(String::from_utf8_lossy(&value).into_owned()));
                }
            }
        }
    }

    /// Leads until leadership is lost, which is an error.
    async fn lead(&self, etcd: &Etcd, lease: i64, first_end: Instant, revision: i64) -> Result<()> {
        let mut watch = etcd.watch(&self.leader_key, revision + 1).await?;
        let mut renewal = etcd.renewal(lease).await?;
        let epoch = self.next_epoch(etcd, revision).await?;
        let mut valid_until = first_end.checked_sub(self.margin()).unwrap_or(first_end);
        if self.now() >= valid_until {
            return Err(lost("the lease ran out before the term began"));
        }
        self.leadership.set_leader(Some(self.address.clone()));
        self.leadership.extend(valid_until);
        self.core.begin_term(epoch)?;
        loop {
            let pause = self.lease / 3;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                change = watch.next() => match change? {
                    Change::Deleted => return Err(lost("the leader's key is gone")),
                    Change::Set(_) => return Err(lost("the leader's key is another's")),
                },
            }
            let asked_at = self.now();
            if asked_at >= valid_until {
                return Err(lost("this master stood still for longer than its lease"));
            }
            match renewal.renew().await? {
                Some(runs) => {
                    valid_until = asked_at + runs.saturating_sub(self.margin());
                    self.leadership.extend(valid_until);
                }
                None => return Err(lost("the lease ran out")),
            }
        }
    }

    /// A fencing epoch higher than all before: counted up in etcd, and at least the time, so that it's also higher than
    /// those of masters that led without etcd.
    async fn next_epoch(&self, etcd: &Etcd, revision: i64) -> Result<u64> {
        for _ in 0..EPOCH_ATTEMPTS {
            let (before, _) = etcd.get(&self.epoch_key).await?;
            let mod_revision = before.as_ref().map_or(0, |entry| entry.mod_revision);
            let last = match &before {
                Some(entry) => parse(&entry.value)?,
                None => 0,
            };
            let epoch = (last + 1).max(self.runtime.clock.unix_ms());
            let text = epoch.to_string();
            let leader = (self.leader_key.as_slice(), revision);
            if etcd
                .set_as_leader(leader, &self.epoch_key, mod_revision, text.as_bytes())
                .await?
            {
                return Ok(epoch);
            }
            if etcd.get(&self.leader_key).await?.0.is_none() {
                return Err(lost("the lease ran out before the term began"));
            }
        }
        Err(lost("somebody else counts epochs"))
    }

    /// How much earlier than etcd this master believes that its lease is over, for clocks that don't run alike.
    fn margin(&self) -> Duration {
        self.lease / 10
    }
}

fn parse(value: &[u8]) -> Result<u64> {
    let text = std::str::from_utf8(value).ok();
    let epoch = text
        .and_then(|text| text.parse::<u64>().ok())
        .filter(|epoch| *epoch < MAX_EPOCH - 1);
    epoch.ok_or_else(|| Error::new(ErrorKind::Corrupt, "etcd's record of the epoch is no number"))
}

fn lost(why: &str) -> Error {
    Error::new(ErrorKind::Fenced, why)
}
