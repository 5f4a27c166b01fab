//! The few calls of etcd that an election needs.

use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::server::{HaSettings, read_pem as read};
use crate::wire::etcd as proto;
use proto::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::kv_client::KvClient;
use proto::lease_client::LeaseClient;
use proto::request_op::Request as Operation;
use proto::response_op::Response as Answer;
use proto::watch_client::WatchClient;
use proto::watch_request::RequestUnion;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(2);
/// How often an idle connection is tried.
const PING: Duration = Duration::from_secs(5);
const PING_PATIENCE: Duration = Duration::from_secs(3);

/// A connection to one of etcd's members.
#[derive(Clone)]
pub(super) struct Etcd {
    channel: Channel,
}

/// A key as etcd has it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub value: Vec<u8>,
    pub mod_revision: i64,
}

/// What a transaction that takes the leader's key found.
pub(super) enum Claim {
    /// The key is ours, created at this revision.
    Won(i64),
    /// It's somebody else's.
    Lost(Entry),
}

/// Renews a lease.
pub(super) struct Renewal {
    lease: i64,
    requests: mpsc::Sender<proto::LeaseKeepAliveRequest>,
    answers: Streaming<proto::LeaseKeepAliveResponse>,
}

/// Tells when a key changes.
pub(super) struct Watch {
    // the stream ends when its requests do
    _requests: mpsc::Sender<proto::WatchRequest>,
    answers: Streaming<proto::WatchResponse>,
}

/// A change of the watched key.
pub(super) enum Change {
    /// It has this value now.
    Set(Vec<u8>),
    /// It's gone.
    Deleted,
}

/// Etcd's members in the order of the settings.
pub(super) fn members(settings: &HaSettings) -> Result<Vec<Endpoint>> {
    let mut tls = ClientTlsConfig::new();
    if let Some(path) = &settings.authority {
        tls = tls.ca_certificate(Certificate::from_pem(read(path)?));
    }
    if let Some((certificate, key)) = &settings.identity {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    let one = |address: &String| {
        let url = if address.contains("://") {
            address.clone()
        } else {
            format!("http://{address}")
        };
        let wrong =
            |error: tonic::transport::Error| Error::invalid(format!("etcd's address {address}: {error}"));
        let endpoint = Endpoint::from_shared(url.clone()).map_err(wrong)?;
        let endpoint = endpoint
            .connect_timeout(CALL)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING_PATIENCE)
            .keep_alive_while_idle(true);
        if url.starts_with("https://") {
            return endpoint.tls_config(tls.clone()).map_err(wrong);
        }
        Ok(endpoint)
    };
    settings.endpoints.iter().map(one).collect()
}

impl Etcd {
    /// Connects to a member.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self> {
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| Error::new(ErrorKind::Unavailable, format!("etcd can't be reached: {error}")))?;
        Ok(Self { channel })
    }

    /// A new lease. Returns its number and how long it runs, which may be longer than asked for.
    pub async fn grant(&self, ttl: Duration) -> Result<(i64, Duration)> {
        let request = proto::LeaseGrantRequest {
            ttl: ttl.as_secs() as i64,
            id: 0,
        };
        let answer = call(LeaseClient::new(self.channel.clone()).lease_grant(request)).await?;
        if !answer.error.is_empty() || answer.ttl <= 0 {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("etcd grants no lease: {}", answer.error),
            ));
        }
        Ok((answer.id, Duration::from_secs(answer.ttl as u64)))
    }

    /// Ends a lease, and with it the key that hangs on it.
    pub async fn revoke(&self, lease: i64) -> Result<()> {
        let request = proto::LeaseRevokeRequest { id: lease };
        call(LeaseClient::new(self.channel.clone()).lease_revoke(request)).await?;
        Ok(())
    }

    /// Begins renewing a lease.
    pub async fn renewal(&self, lease: i64) -> Result<Renewal> {
        let (requests, queue) = mpsc::channel(4);
        // the stream's answer may wait for its first request
        let first = proto::LeaseKeepAliveRequest { id: lease };
        requests.send(first).await.map_err(|_| gone())?;
        let mut client = LeaseClient::new(self.channel.clone());
        let mut answers = call(client.lease_keep_alive(ReceiverStream::new(queue))).await?;
        next(&mut answers).await?;
        Ok(Renewal {
            lease,
            requests,
            answers,
        })
    }

    /// The value of a key.
    pub async fn get(&self, key: &[u8]) -> Result<(Option<Entry>, i64)> {
        let request = proto::RangeRequest { key: key.to_vec() };
        let answer = call(KvClient::new(self.channel.clone()).range(request)).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok((first(answer), revision))
    }

    /// Takes the leader's key if nobody has it.
    pub async fn claim(&self, key: &[u8], value: &[u8], lease: i64) -> Result<Claim> {
        let request = proto::TxnRequest {
            compare: vec![compare(
                key,
                CompareTarget::Create,
                TargetUnion::CreateRevision(0),
            )],
            success: vec![put(key, value, lease)],
            failure: vec![range(key)],
        };
        let answer = call(KvClient::new(self.channel.clone()).txn(request)).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        if answer.succeeded {
            return Ok(Claim::Won(revision));
        }
        let found = answer
            .responses
            .into_iter()
            .find_map(|answer| match answer.response {
                Some(Answer::ResponseRange(range)) => first(range),
                _ => None,
            });
        let missing = || Error::new(ErrorKind::Unavailable, "etcd's answer has no leader");
        Ok(Claim::Lost(found.ok_or_else(missing)?))
    }

    /// Sets a key if it's still as it was, and the leader's key still the one of that revision. Returns whether.
    pub async fn set_as_leader(
        &self,
        leader: (&[u8], i64),
        key: &[u8],
        before: i64,
        value: &[u8],
    ) -> Result<bool> {
        let request = proto::TxnRequest {
            compare: vec![
                compare(
                    leader.0,
                    CompareTarget::Create,
                    TargetUnion::CreateRevision(leader.1),
                ),
                compare(key, CompareTarget::Mod, TargetUnion::ModRevision(before)),
            ],
            success: vec![put(key, value, 0)],
            failure: Vec::new(),
        };
        let answer = call(KvClient::new(self.channel.clone()).txn(request)).await?;
        Ok(answer.succeeded)
    }

    /// Watches a key from a revision on.
    pub async fn watch(&self, key: &[u8], from: i64) -> Result<Watch> {
        let (requests, queue) = mpsc::channel(1);
        let create = proto::WatchCreateRequest {
            key: key.to_vec(),
            range_end: Vec::new(),
            start_revision: from,
        };
        let request = proto::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        requests.send(request).await.map_err(|_| gone())?;
        let mut client = WatchClient::new(self.channel.clone());
        let answers = call(client.watch(ReceiverStream::new(queue))).await?;
        Ok(Watch {
            _requests: requests,
            answers,
        })
    }
}

impl Renewal {
    /// Renews the lease. Returns how long it runs from the moment of asking, or `None` when it's over.
    pub async fn renew(&mut self) -> Result<Option<Duration>> {
        let request = proto::LeaseKeepAliveRequest { id: self.lease };
        self.requests.send(request).await.map_err(|_| gone())?;
        let answer = next(&mut self.answers).await?;
        Ok((answer.ttl > 0).then(|| Duration::from_secs(answer.ttl as u64)))
    }
}

impl Watch {
    /// The next change. There is no deadline: nothing may happen for days.
    pub async fn next(&mut self) -> Result<Change> {
        loop {
            let answer = self
                .answers
                .message()
                .await
                .map_err(|status| failed(&status))?
                .ok_or_else(gone)?;
            if answer.canceled {
                return Err(Error::new(ErrorKind::Unavailable, "etcd ended the watch"));
            }
            // the last one counts
            if let Some(event) = answer.events.into_iter().next_back() {
                return Ok(match event.kv {
                    Some(entry) if event.r#type == proto::event::EventType::Put as i32 => {
                        Change::Set(entry.value)
                    }
                    _ => Change::Deleted,
                });
            }
        }
    }
}

fn first(answer: proto::RangeResponse) -> Option<Entry> {
    answer.kvs.into_iter().next().map(|found| Entry {
        value: found.value,
        mod_revision: found.mod_revision,
    })
}

fn compare(key: &[u8], target: CompareTarget, value: TargetUnion) -> proto::Compare {
    proto::Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: key.to_vec(),
        target_union: Some(value),
    }
}

fn put(key: &[u8], value: &[u8], lease: i64) -> proto::RequestOp {
    proto::RequestOp {
        request: Some(Operation::RequestPut(proto::PutRequest {
            key: key.to_vec(),
            value: value.to_vec(),
            lease,
        })),
    }
}

fn range(key: &[u8]) -> proto::RequestOp {
    proto::RequestOp {
        request: Some(Operation::RequestRange(proto::RangeRequest { key: key.to_vec() })),
    }
}

async fn call<T>(request: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T> {
    match tokio::time::timeout(CALL, request).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(failed(&status)),
        Err(_) => Err(Error::new(ErrorKind::TimedOut, "etcd doesn't answer")),
    }
}

async fn next<T>(answers: &mut Streaming<T>) -> Result<T> {
    match tokio::time::timeout(CALL, answers.message()).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(gone()),
        Ok(Err(status)) => Err(failed(&status)),
        Err(_) => Err(Error::new(ErrorKind::TimedOut, "etcd doesn't answer")),
    }
}

fn failed(status: &tonic::Status) -> Error {
    Error::new(ErrorKind::Unavailable, format!("etcd: {}", status.message()))
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "etcd's connection is gone")
}
