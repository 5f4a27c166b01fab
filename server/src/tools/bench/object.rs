//! `kvstored bench object`: the tier S3 on a bucket, beside the bare client of the same bucket in the same run.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use kvstored_backends::cache::map_arena;
use kvstored_core::memory::SlotOwner;
use kvstored_core::{
    Action, Arena, BlockHash, Durability, Envelope, Error, ErrorKind, Identity, Layout, NamespaceInfo,
    Operation, Result, Runtime, SlotGuard, Tier,
};
use kvstored_object::{S3Settings, S3Tier, connect};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

use super::figure::{Figure, Samples, Side};
use super::setup::gigabytes_per_second;

/// Bytes of a block's payload, and of the bare client's objects.
const BLOCK_BYTES: u32 = 8 << 20;
/// The longest that a round may take.
const PATIENCE: Duration = Duration::from_mins(5);

/// `kvstored bench object`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The bucket; what is put there is deleted afterwards. Credentials come from the environment's AWS_ variables
    #[arg(long, value_name = "NAME")]
    s3_bucket: String,

    /// Address of the service [default: the environment variable AWS_ENDPOINT_URL, or AWS]
    #[arg(long, value_name = "URL")]
    s3_endpoint: Option<String>,

    /// Allow a service without TLS
    #[arg(long)]
    s3_allow_http: bool,

    /// Blocks of 8 MiB in each round
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    blocks: u16,

    /// Objects on their way at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    depth: u16,

    /// How often each figure is measured, in turn with its limit; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

struct NoOwner;

impl SlotOwner for NoOwner {
    fn release(&self, _slot: u32) {}
}

struct Bench {
    tier: Arc<S3Tier>,
    info: Arc<NamespaceInfo>,
    arena: Arc<Arena>,
    store: Arc<dyn ObjectStore>,
    tasks: tokio::runtime::Runtime,
    runtime: Runtime,
    blocks: usize,
    depth: usize,
    prefix: String,
    /// Distinguishes what rounds put.
    round: u64,
}

/// Runs `kvstored bench object`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut bench = Bench::new(args)?;
    let rounds = usize::from(args.rounds);
    let measured = Samples::take_each(rounds, |side| bench.round(side));
    bench.clean_up();
    let [put, get] = measured?;
    let what = format!(
        "{} blocks of 8 MiB, {} at once; limit: object_store alone",
        args.blocks, args.depth
    );
    let figures = [
        Figure::new("s3_dump", "GB/s", &put, what.clone()),
        Figure::new("s3_load", "GB/s", &get, what),
    ];
    super::show(&figures, None, args.json)?;
    Ok(ExitCode::SUCCESS)
}

impl Bench {
    fn new(args: &Args) -> Result<Self> {
        let runtime = Runtime::system();
        let prefix = format!("kvstored-bench-{:016x}", runtime.random.next_u64());
        let (blocks, depth) = (usize::from(args.blocks), usize::from(args.depth));
        let settings = S3Settings {
            bucket: args.s3_bucket.clone(),
            prefix: format!("{prefix}/tier"),
            endpoint: args.s3_endpoint.clone(),
            allow_http: args.s3_allow_http,
            object_bytes: u64::from(BLOCK_BYTES),
            most_uploads: depth,
            most_reads: depth,
            write_buffer_bytes: u64::MAX,
            read_timeout: PATIENCE,
            write_timeout: PATIENCE,
            ..S3Settings::default()
        };
        let store = connect(&settings)?;
        let tier = S3Tier::open(settings, runtime.clone(), None)?;
        let identity = Identity {
            model: "bench".into(),
            ..Identity::default()
        };
        let info = Arc::new(NamespaceInfo::new(identity, Layout::uniform(1, 1, BLOCK_BYTES)?)?);
        tier.open_namespace(&info)?;
        let arena = map_arena(info.layout.image_bytes() * blocks, false, true)?.arena;
        let tasks = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Error::from_io(error, "can't start threads"))?;
        let bench = Self {
            tier,
            info,
            arena,
            store,
            tasks,
            runtime,
            blocks,
            depth,
            prefix,
            round: 0,
        };
        bench.fill()?;
        Ok(bench)
    }

    fn slot(&self, number: usize) -> SlotGuard {
        let bytes = self.info.layout.image_bytes();
        SlotGuard::new(
            Arc::clone(&self.arena),
            Arc::new(NoOwner),
            number as u32,
            number * bytes,
            bytes,
        )
    }

    /// Bytes that don't compress.
    fn fill(&self) -> Result<()> {
        let mut noise = vec![0u8; BLOCK_BYTES as usize];
        for number in 0..self.blocks {
            for word in noise.chunks_exact_mut(8) {
                word.copy_from_slice(&self.runtime.random.next_u64().to_le_bytes());
            }
            self.arena
                .write(self.slot(number).offset() + kvstored_core::PAGE_BYTES, &noise)?;
        }
        Ok(())
    }

    fn hash(&self, number: usize) -> Result<BlockHash> {
        let mut bytes = [0u8; 32];
        let (first, rest) = bytes.split_at_mut(8);
        first.copy_from_slice(&self.round.to_le_bytes());
        if let Some(second) = rest.first_chunk_mut::<8>() {
            *second = (number as u64).to_le_bytes();
        }
        BlockHash::new(&bytes)
    }

    /// Speeds of putting and getting, in GB/s.
    fn round(&mut self, side: Side) -> Result<[f64; 2]> {
        self.round += 1;
        let bytes = self.blocks * BLOCK_BYTES as usize;
        let speed = |started: Instant, ended: Instant| {
            gigabytes_per_second(bytes, ended.saturating_duration_since(started).as_secs_f64())
        };
        let now = || self.runtime.clock.now();
        if side == Side::Limit {
            let bodies: Vec<bytes::Bytes> = (0..self.blocks)
                .map(|number| self.body(number))
                .collect::<Result<_>>()?;
            let started = now();
            self.put_bare(&bodies)?;
            let (put, again) = (now(), now());
            self.get_bare()?;
            return Ok([speed(started, put), speed(again, now())]);
        }
        for number in 0..self.blocks {
            let slot = self.slot(number);
            let sum = slot
                .arena()
                .checksum(slot.offset() + kvstored_core::PAGE_BYTES, BLOCK_BYTES as usize)?;
            let key = self.info.key(self.hash(number)?);
            let envelope = Envelope::new(key, &self.info.layout, 1, self.runtime.clock.unix_ms(), vec![sum]);
            let page = envelope.encode()?;
            slot.write_descriptor(&page)?;
        }
        let started = now();
        self.submit(Action::Write(Durability::Durable))?;
        let (put, again) = (now(), now());
        self.submit(Action::Read)?;
        Ok([speed(started, put), speed(again, now())])
    }

    fn submit(&self, action: Action) -> Result<()> {
        let (outcomes, results) = channel();
        let mut batch = Vec::with_capacity(self.blocks);
        for number in 0..self.blocks {
            let outcomes = outcomes.clone();
            batch.push(Operation {
                namespace: Arc::clone(&self.info),
                hash: self.hash(number)?,
                action,
                buffer: self.slot(number),
                completion: Box::new(move |_, result| drop(outcomes.send(result))),
            });
        }
        self.tier.submit(batch);
        for _ in 0..self.blocks {
            results
                .recv_timeout(PATIENCE)
                .map_err(|_| Error::new(ErrorKind::TimedOut, "the tier doesn't answer"))??;
        }
        Ok(())
    }

    fn body(&self, number: usize) -> Result<bytes::Bytes> {
        let mut body = vec![0u8; BLOCK_BYTES as usize];
        self.arena
            .read(self.slot(number).offset() + kvstored_core::PAGE_BYTES, &mut body)?;
        Ok(body.into())
    }

    fn path(&self, number: usize) -> Path {
        Path::from(format!("{}/bare/{}-{number}", self.prefix, self.round))
    }

    fn put_bare(&self, bodies: &[bytes::Bytes]) -> Result<()> {
        let bodies: Vec<(Path, bytes::Bytes)> = bodies
            .iter()
            .enumerate()
            .map(|(number, body)| (self.path(number), body.clone()))
            .collect();
        let store = Arc::clone(&self.store);
        self.all_of(bodies, move |(path, body)| {
            let store = Arc::clone(&store);
            async move { store.put(&path, PutPayload::from(body)).await.map(drop) }
        })
    }

    fn get_bare(&self) -> Result<()> {
        let paths: Vec<Path> = (0..self.blocks).map(|number| self.path(number)).collect();
        let store = Arc::clone(&self.store);
        self.all_of(paths, move |path| {
            let store = Arc::clone(&store);
            async move {
                let mut body = store.get(&path).await?.into_stream();
                while let Some(piece) = body.next().await {
                    std::hint::black_box(piece?);
                }
                Ok(())
            }
        })
    }

    /// Does all of it, so many at once.
    fn all_of<T, F>(&self, items: Vec<T>, work: impl Fn(T) -> F) -> Result<()>
    where
        F: Future<Output = object_store::Result<()>> + Send + 'static,
    {
        let depth = self.depth;
        self.tasks.block_on(async {
            let mut under_way = JoinSet::new();
            let mut items = items.into_iter();
            loop {
                while under_way.len() < depth
                    && let Some(item) = items.next()
                {
                    under_way.spawn(work(item));
                }
                match under_way.join_next().await {
                    None => return Ok(()),
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(error))) => {
                        return Err(Error::new(ErrorKind::Unavailable, error.to_string()));
                    }
                    Some(Err(error)) => return Err(Error::internal(error.to_string())),
                }
            }
        })
    }

    /// Deletes what was put.
    fn clean_up(&self) {
        self.tier.shutdown();
        let prefix = Path::from(self.prefix.as_str());
        let failed: Vec<object_store::Error> = self.tasks.block_on(async {
            let keys: Vec<Path> = self
                .store
                .list(Some(&prefix))
                .filter_map(|found| found.ok().map(|found| found.location))
                .collect()
                .await;
            let mut failed = Vec::new();
            for key in keys {
                if let Err(error) = self.store.delete(&key).await {
                    failed.push(error);
                }
            }
            failed
        });
        for error in failed {
            tracing::warn!(%error, "an object of the measurement stays in the bucket");
        }
    }
}
