//! A bad network: forwards connections and spoils what comes back, as it's told.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, Result, Runtime};

use crate::daemon::pause;

/// What happens to answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Trouble {
    /// Nothing.
    None,
    /// Each connection is closed once its answer has begun.
    Cut,
    /// Every long answer has a wrong bit.
    Flip,
    /// Answers come a tenth of a second late.
    Late,
    /// Nothing comes back.
    Silence,
    /// Every request is answered with 503.
    Unavailable,
    /// Every request is answered with 500.
    Broken,
    /// Connections are closed at once.
    Refused,
}

impl Trouble {
    /// All that is bad.
    pub const ALL: [Self; 7] = [
        Self::Cut,
        Self::Flip,
        Self::Late,
        Self::Silence,
        Self::Unavailable,
        Self::Broken,
        Self::Refused,
    ];

    fn from_number(number: u8) -> Self {
        Self::ALL
            .into_iter()
            .find(|trouble| *trouble as u8 == number)
            .unwrap_or(Self::None)
    }
}

/// Bits are only flipped in pieces that are longer, past where headers may be.
const FLIPPED_BYTE: usize = 3000;
/// How often a thread that waits looks whether it's over.
const GLANCE: Duration = Duration::from_millis(50);

struct State {
    target: u16,
    trouble: AtomicU8,
    stopping: AtomicBool,
    runtime: Runtime,
}

impl State {
    fn trouble(&self) -> Trouble {
        Trouble::from_number(self.trouble.load(Ordering::Acquire))
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// The network.
pub struct Network {
    port: u16,
    state: Arc<State>,
    acceptor: Option<ThreadHandle>,
}

impl Network {
    /// A network in front of a port of this machine.
    pub fn before(target: u16) -> Result<Self> {
        let failed = |error| Error::from_io(error, "network");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        listener.set_nonblocking(true).map_err(failed)?;
        let state = Arc::new(State {
            target,
            trouble: AtomicU8::new(Trouble::None as u8),
            stopping: AtomicBool::new(false),
            runtime: Runtime::system(),
        });
        let accepting = Arc::clone(&state);
        let acceptor = state
            .runtime
            .spawner
            .spawn("network", Box::new(move || accept(&listener, &accepting)))?;
        Ok(Self {
            port,
            state,
            acceptor: Some(acceptor),
        })
    }

    /// From now on, that happens.
    pub fn set(&self, trouble: Trouble) {
        self.state.trouble.store(trouble as u8, Ordering::Release);
    }

    /// Its address as clients take it.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::Release);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    while !state.stopping() {
        let Ok((client, _)) = listener.accept() else {
            pause(Duration::from_millis(2));
            continue;
        };
        if state.trouble() == Trouble::Refused {
            continue;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", state.target)) else {
            continue;
        };
        for stream in [&client, &server] {
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_nodelay(true);
            let _ = stream.set_read_timeout(Some(GLANCE));
        }
        let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else {
            continue;
        };
        for (name, work) in [
            ("network-up", direction(state, client, server, false)),
            ("network-down", direction(state, server_too, client_too, true)),
        ] {
            // threads end with their connection, or when the network stops
            drop(state.runtime.spawner.spawn(name, work));
        }
    }
}

fn direction(state: &Arc<State>, from: TcpStream, to: TcpStream, down: bool) -> Box<dyn FnOnce() + Send> {
    let state = Arc::clone(state);
    Box::new(move || {
        if down {
            answers(&state, &from, &to);
        } else {
            requests(&state, &from, &to);
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    })
}

/// The next bytes; `None` at the end.
fn receive(state: &State, mut from: &TcpStream, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match from.read(buffer) {
            Ok(0) => return None,
            Ok(count) => return Some(count),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                if state.stopping() {
                    return None;
                }
            }
            Err(_) => return None,
        }
    }
}

fn requests(state: &State, client: &TcpStream, mut server: &TcpStream) {
    let mut buffer = vec![0u8; 64 << 10];
    while let Some(count) = receive(state, client, &mut buffer) {
        let status = match state.trouble() {
            Trouble::Unavailable => "503 Slow Down",
            Trouble::Broken => "500 Internal Server Error",
            Trouble::Refused => return,
            _ => {
                if server.write_all(buffer.get(..count).unwrap_or_default()).is_err() {
                    return;
                }
                continue;
            }
        };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let mut client = client;
        let _ = client.write_all(answer.as_bytes());
        return;
    }
}

fn answers(state: &State, server: &TcpStream, mut client: &TcpStream) {
    let mut buffer = vec![0u8; 64 << 10];
    while let Some(count) = receive(state, server, &mut buffer) {
        let trouble = state.trouble();
        match trouble {
            Trouble::Late => pause(Duration::from_millis(100)),
            Trouble::Silence => continue,
            Trouble::Flip => {
                if let Some(byte) = buffer
                    .get_mut(..count)
                    .and_then(|bytes| bytes.get_mut(FLIPPED_BYTE))
                {
                    *byte ^= 4;
                }
            }
            Trouble::Refused => return,
            _ => {}
        }
        let sent = if trouble == Trouble::Cut {
            count.div_ceil(2)
        } else {
            count
        };
        if client.write_all(buffer.get(..sent).unwrap_or_default()).is_err() || trouble == Trouble::Cut {
            return;
        }
    }
}
