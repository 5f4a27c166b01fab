//! Mutual TLS under a connection.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

use super::io::{Gather, copy_in};
use crate::memory::Span;
use crate::settings::TlsSettings;

/// Plaintext that is handed on at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Ciphertext that may wait for the socket.
const WAITING_BYTES: usize = 256 << 10;

/// Certificates and keys, ready for use.
pub(crate) struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    peer_name: Option<String>,
}

fn wrong(what: &str, path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::invalid(format!("{what} can't be used: {why}")).with("path", path.display())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |error: &dyn std::fmt::Display| wrong("the certificates", path, error);
    let all = CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|error| wrong(&error))?;
    if all.is_empty() {
        return Err(wrong(&"the file holds none"));
    }
    Ok(all)
}

impl Tls {
    /// Reads the files. Fails with `InvalidInput`, naming the file.
    pub fn load(settings: &TlsSettings) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(&settings.certificate)?;
        let key = || {
            PrivateKeyDer::from_pem_file(&settings.key)
                .map_err(|error| wrong("the private key", &settings.key, &error))
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&settings.authority)? {
            let bad = |error| wrong("the authority's certificate", &settings.authority, &error);
            roots.add(certificate).map_err(bad)?;
        }
        let roots = Arc::new(roots);
        let unusable = |error: &dyn std::fmt::Display| wrong("the certificate", &settings.certificate, error);
        let of_servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| unusable(&error))?;
        let of_clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| unusable(&error))?;
        let versions = [&rustls::version::TLS13];
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| unusable(&error))?
            .with_webpki_verifier(of_servers)
            .with_client_auth_cert(chain.clone(), key()?)
            .map_err(|error| unusable(&error))?;
        // a connection that was resumed would skip the look at certificates
        client.resumption = rustls::client::Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|error| unusable(&error))?
            .with_client_cert_verifier(of_clients)
            .with_single_cert(chain, key()?)
            .map_err(|error| unusable(&error))?;
        server.send_tls13_tickets = 0;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            peer_name: settings.peer_name.clone(),
        })
    }

    /// The opener's side. `host` is what the address named.
    pub fn open(&self, host: &str) -> Result<TlsState> {
        let name = self.peer_name.as_deref().unwrap_or(host);
        let name = match name.parse::<IpAddr>() {
            Ok(address) => ServerName::from(address),
            Err(_) => ServerName::try_from(name.to_owned())
                .map_err(|_| Error::invalid(format!("\"{name}\" is no name that a certificate can carry")))?,
        };
        let connection = ClientConnection::new(self.client.clone(), name)
            .map_err(|error| Error::internal(format!("TLS: {error}")))?;
        Ok(TlsState::new(connection.into()))
    }

    /// The acceptor's side.
    pub fn accept(&self) -> Result<TlsState> {
        let connection = ServerConnection::new(self.server.clone())
            .map_err(|error| Error::internal(format!("TLS: {error}")))?;
        Ok(TlsState::new(connection.into()))
    }
}

/// One connection's TLS.
pub(crate) struct TlsState {
    connection: Connection,
    bounce: Vec<u8>,
}

fn refused(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, error)
}

impl TlsState {
    fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(WAITING_BYTES));
        Self {
            connection,
            bounce: Vec::new(),
        }
    }

    /// Whether something waits for the socket.
    pub fn has_unsent(&self) -> bool {
        self.connection.wants_write()
    }

    /// Keying material that only the two ends of this connection have. Fails before TLS's own handshake is over.
    pub fn binding(&self) -> Result<[u8; 32]> {
        let label = b"EXPORTER-kvstored-transfer";
        let exported = match &self.connection {
            Connection::Client(client) => client.export_keying_material([0; 32], label, None),
            Connection::Server(server) => server.export_keying_material([0; 32], label, None),
        };
        exported.map_err(|error| Error::new(ErrorKind::PermissionDenied, format!("TLS: {error}")))
    }

    /// Sends what waits. Whether all of it went.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Socket(socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    pub fn send(&mut self, socket: BorrowedFd<'_>, gather: &Gather<'_>) -> io::Result<Option<usize>> {
        let mut taken = 0;
        self.bounce.resize(CHUNK_BYTES, 0);
        while self.flush(socket)? && taken < gather.bytes() {
            let chunk = gather.copy_out(taken, &mut self.bounce);
            let plain = self.bounce.get(..chunk).unwrap_or_default();
            let written = self.connection.writer().write(plain)?;
            taken += written;
            if written == 0 {
                break;
            }
        }
        Ok((taken > 0).then_some(taken))
    }

    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        memory: Option<(&Span, usize, usize)>,
        rest: &mut [u8],
    ) -> io::Result<Option<usize>> {
        loop {
            let read = match memory {
                Some((span, at, length)) => {
                    self.bounce.resize(CHUNK_BYTES, 0);
                    let length = length.min(CHUNK_BYTES);
                    let buffer = self.bounce.get_mut(..length).unwrap_or_default();
                    self.connection.reader().read(buffer).inspect(|read| {
                        copy_in(span, at, buffer.get(..*read).unwrap_or_default());
                    })
                }
                None => self.connection.reader().read(rest),
            };
            match read {
                Ok(read) => return Ok(Some(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if !self.take_records(socket)? {
                return Ok(None);
            }
        }
    }

    /// Takes ciphertext from the socket. False if none is there.
    fn take_records(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        match self.connection.read_tls(&mut Socket(socket)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        let processed = self.connection.process_new_packets();
        // answers of TLS's own, among them what it complains of
        let flushed = self.flush(socket);
        processed.map_err(refused)?;
        flushed?;
        Ok(true)
    }

    /// Throws plaintext away.
    pub fn discard(&mut self, socket: BorrowedFd<'_>, length: usize) -> io::Result<Option<usize>> {
        let mut waste = std::mem::take(&mut self.bounce);
        waste.resize(CHUNK_BYTES, 0);
        let part = length.min(CHUNK_BYTES);
        let read = self.receive(socket, None, waste.get_mut(..part).unwrap_or_default());
        self.bounce = waste;
        read
    }
}

/// Reads and writes ciphertext.
struct Socket<'a>(BorrowedFd<'a>);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        super::io::receive(self.0, None, buffer)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut gather = Gather::new();
        gather.push_bytes(bytes);
        super::io::send(self.0, &gather)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
