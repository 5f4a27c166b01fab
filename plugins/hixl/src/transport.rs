//! The transport over HIXL.

use std::collections::HashMap;
use std::ffi::CString;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvstored_plugin::{Completion, Failure, Kind, Log, Move, MoveDirection, Settings, Transport};

use crate::acl::Device;
use crate::address::ServerAddress;
use crate::connection::Connection;
use crate::failures::checked;
use crate::library;
use crate::settings::Options;
use crate::symbols::{
    ClientDescription, Functions, Handle, MEMORY_HOST, Memory, NO_CONFIGURATION, ServerDescription,
};
use crate::watcher::Watcher;

/// Clients that may wait to be accepted.
const BACKLOG: u32 = 64;

/// Memory that the host has registered.
struct Known {
    address: u64,
    bytes: u64,
    /// The server's handle, where peers may touch it.
    exposed: Option<Handle>,
}

/// What HIXL knows.
#[derive(Default)]
struct State {
    memory: HashMap<u64, Known>,
    connections: HashMap<u64, Arc<Connection>>,
}

/// A server that exposes memory, and clients that move bytes.
pub struct HixlTransport {
    functions: Functions,
    options: Options,
    device: Option<Arc<Device>>,
    server: Option<Server>,
    next: AtomicU64,
    state: Mutex<State>,
    /// Calls that change what is registered, one after the other, so that clients know all of it.
    changing: Mutex<()>,
    watcher: Watcher,
}

// SAFETY: HIXL's handles may be used from any thread.
unsafe impl Send for HixlTransport {}
// SAFETY: as above.
unsafe impl Sync for HixlTransport {}

fn text(ip: std::net::IpAddr) -> Result<CString, Failure> {
    CString::new(ip.to_string()).map_err(|_| Failure::new(Kind::Internal, "an address with a zero"))
}

/// A server that peers reach.
struct Server {
    handle: Handle,
    listen: SocketAddr,
}

/// A server on the first port that it can listen on.
fn listening(functions: &Functions, options: &Options) -> Result<Option<Server>, Failure> {
    let Some(listen) = &options.listen else {
        return Ok(None);
    };
    let mut why = Failure::new(Kind::InvalidInput, "no port to listen on");
    for port in listen.ports.clone() {
        let at = SocketAddr::new(listen.ip, port);
        match listening_at(functions, options, at) {
            Ok(handle) => return Ok(Some(Server { handle, listen: at })),
            Err(failure) => why = failure,
        }
    }
    Err(why)
}

fn listening_at(functions: &Functions, options: &Options, at: SocketAddr) -> Result<Handle, Failure> {
    let ip = text(at.ip())?;
    let description = ServerDescription {
        endpoints: &raw const options.endpoint,
        ip: ip.as_ptr(),
        port: u32::from(at.port()),
        endpoint_count: 1,
        reserved: [0; 104],
    };
    let configuration = NO_CONFIGURATION;
    let mut server = std::ptr::null_mut();
    // SAFETY: all that is pointed to is lent for the call.
    let status = unsafe {
        (functions.server_create)(&raw const description, &raw const configuration, &raw mut server)
    };
    checked("HixlCSServerCreate", status)?;
    // SAFETY: the server is there.
    let status = unsafe { (functions.server_listen)(server, BACKLOG) };
    checked("HixlCSServerListen", status).inspect_err(|_| {
        // SAFETY: as above, and it's not used afterwards.
        unsafe { (functions.server_destroy)(server) };
    })?;
    Ok(server)
}

impl HixlTransport {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bind(&self) -> Result<(), Failure> {
        self.device.as_ref().map_or(Ok(()), |device| device.bind())
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn connection(&self, connection: u64) -> Result<Arc<Connection>, Failure> {
        let found = self.lock().connections.get(&connection).cloned();
        found.ok_or_else(|| Failure::new(Kind::NotFound, "no such connection"))
    }
}

impl Transport for HixlTransport {
    fn open(log: Log, settings: Settings) -> Result<Self, Failure> {
        let options = Options::read(&settings)?;
        let device = match options.device {
            Some(number) => Some(Arc::new(Device::open(options.acl_library.as_deref(), number)?)),
            None => None,
        };
        let functions = library::hixl(options.library.as_deref())?;
        if let Some(device) = &device {
            device.bind()?;
        }
        let watcher = Watcher::start(device.clone(), log)?;
        Ok(Self {
            server: listening(&functions, &options)?,
            functions,
            options,
            device,
            next: AtomicU64::new(1),
            state: Mutex::default(),
            changing: Mutex::default(),
            watcher,
        })
    }

    fn address(&self) -> Result<Vec<u8>, Failure> {
        let server = self.server.as_ref().ok_or_else(|| {
            let message = "peers can't connect: setting listen is missing";
            Failure::new(Kind::Unsupported, message)
        })?;
        let (listen, endpoint) = (server.listen, self.options.endpoint);
        Ok(ServerAddress { listen, endpoint }.encode())
    }

    unsafe fn register_memory(&self, address: *mut u8, bytes: u64, exposed: bool) -> Result<u64, Failure> {
        self.bind()?;
        let _one = self.changing.lock();
        let number = self.number();
        let exposed = if exposed {
            let server = self.server.as_ref().ok_or_else(|| {
                let message = "memory can't be exposed: setting listen is missing";
                Failure::new(Kind::Unsupported, message)
            })?;
            let memory = Memory {
                kind: MEMORY_HOST,
                address: address.cast(),
                bytes,
            };
            let tag = CString::new(format!("kvstored-{number}")).unwrap_or_default();
            let mut handle = std::ptr::null_mut();
            // SAFETY: the server is there, the arguments are lent for the call; the host keeps the memory valid.
            let status = unsafe {
                (self.functions.server_register)(
                    server.handle,
                    tag.as_ptr(),
                    &raw const memory,
                    &raw mut handle,
                )
            };
            checked("HixlCSServerRegMem", status)?;
            Some(handle)
        } else {
            None
        };
        let known = Known {
            address: address.expose_provenance() as u64,
            bytes,
            exposed,
        };
        self.lock().memory.insert(number, known);
        Ok(number)
    }

    unsafe fn unregister_memory(&self, memory: u64) -> Result<(), Failure> {
        self.bind()?;
        let _one = self.changing.lock();
        let (exposed, connections) = {
            let state = self.lock();
            let unknown = || Failure::new(Kind::NotFound, "no such memory");
            let known = state.memory.get(&memory).ok_or_else(unknown)?;
            let connections: Vec<_> = state.connections.values().cloned().collect();
            (known.exposed, connections)
        };
        if let (Some(handle), Some(server)) = (exposed, &self.server) {
            // SAFETY: server and handle are there.
            let status = unsafe { (self.functions.server_unregister)(server.handle, handle) };
            checked("HixlCSServerUnregMem", status)?;
        } else {
            for connection in connections {
                connection.unregister(memory)?;
            }
        }
        self.lock().memory.remove(&memory);
        Ok(())
    }

    fn connect(&self, address: &[u8], timeout_ms: u64) -> Result<u64, Failure> {
        self.bind()?;
        let remote = ServerAddress::decode(address)?;
        let ip = text(remote.listen.ip())?;
        let description = ClientDescription {
            local: &raw const self.options.endpoint,
            remote: &raw const remote.endpoint,
            ip: ip.as_ptr(),
            port: u32::from(remote.listen.port()),
            traffic_class: self.options.traffic_class,
            service_level: self.options.service_level,
            reserved: [0; 98],
        };
        let configuration = NO_CONFIGURATION;
        let mut client = std::ptr::null_mut();
        // SAFETY: all that is pointed to is lent for the call.
        let status = unsafe {
            (self.functions.client_create)(&raw const description, &raw const configuration, &raw mut client)
        };
        checked("HixlCSClientCreate", status)?;
        let own: Vec<(u64, u64, u64)> = {
            let state = self.lock();
            let own = state.memory.iter().filter(|(_, known)| known.exposed.is_none());
            own.map(|(number, known)| (*number, known.address, known.bytes))
                .collect()
        };
        let timeout_ms = u32::try_from(timeout_ms).unwrap_or(u32::MAX);
        let connection = Arc::new(Connection::open(&self.functions, client, &own, timeout_ms)?);
        let number = self.number();
        let gone: Vec<u64> = {
            let mut state = self.lock();
            state.connections.insert(number, connection.clone());
            let gone = own
                .iter()
                .filter(|(memory, ..)| !state.memory.contains_key(memory));
            gone.map(|(memory, ..)| *memory).collect()
        };
        for memory in gone {
            connection.unregister(memory)?;
        }
        self.watcher.add(&connection);
        Ok(number)
    }

    unsafe fn disconnect(&self, connection: u64) -> Result<(), Failure> {
        self.bind()?;
        let found = self.connection(connection)?;
        found.close()?;
        self.watcher.remove(&found);
        self.lock().connections.remove(&connection);
        Ok(())
    }

    unsafe fn submit(
        &self,
        connection: u64,
        direction: MoveDirection,
        moves: &[Move],
        completion: Completion,
    ) {
        let ready = self.bind().and_then(|()| self.connection(connection));
        match ready {
            Ok(found) => {
                found.submit(direction, moves, completion);
                self.watcher.wake();
            }
            Err(failure) => completion.fail(&failure),
        }
    }
}

impl Drop for HixlTransport {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            // SAFETY: the server is there, and not used afterwards.
            unsafe { (self.functions.server_destroy)(server.handle) };
        }
    }
}
