//! Who is at the other end of a socket, as the kernel tells.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use kvstored_core::{Error, ErrorKind, Result};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::process::{PeerProcess, StartTime};
use crate::time::os;

/// The option's number on all architectures that this builds for (since Linux 6.5).
const SO_PEERPIDFD: libc::c_int = 77;

/// Who connected, or listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The process. 0 where it isn't seen from this process's PID namespace.
    pub pid: i32,
    /// The user.
    pub uid: u32,
}

impl Credentials {
    /// Fails with `PermissionDenied` for another user than this process's.
    pub(super) fn of(socket: &OwnedFd) -> Result<Self> {
        // read as it is: rustix's structure has no room for the 0 that stands for a process not seen from
        // here SAFETY: all zeros is a valid value.
        let mut credentials: libc::ucred = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to the structure.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut credentials).cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(Error::from_io(std::io::Error::last_os_error(), "SO_PEERCRED"));
        }
        let own = rustix::process::geteuid().as_raw();
        if credentials.uid != own {
            return Err(
                Error::new(ErrorKind::PermissionDenied, "the peer is another user's process")
                    .with("uid", credentials.uid),
            );
        }
        Ok(Self {
            pid: credentials.pid,
            uid: credentials.uid,
        })
    }

    /// The process at the other end. `told` is the start time that it sent, if it has.
    ///
    /// Fails with `Unavailable` where it has exited, or isn't the one that started then, and with
    /// `Unsupported` where it isn't seen from this process's PID namespace.
    pub(super) fn process(self, socket: &OwnedFd, told: Option<StartTime>) -> Result<PeerProcess> {
        let pid = Pid::from_raw(self.pid.max(0)).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "the peer's process isn't seen from this PID namespace",
            )
        })?;
        let pidfd = match peer_pidfd(socket) {
            Ok(pidfd) => pidfd,
            // kernels before 6.5: by number, which the start time makes safe
            Err(Errno::NOPROTOOPT) => {
                pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| os(errno, "pidfd_open"))?
            }
            Err(Errno::SRCH | Errno::INVAL | Errno::NODATA) => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the peer's process has exited",
                ));
            }
            Err(errno) => return Err(os(errno, "SO_PEERPIDFD")),
        };
        PeerProcess::from_pidfd(pidfd, pid, told)
    }
}

fn peer_pidfd(socket: &OwnedFd) -> Result<OwnedFd, Errno> {
    let mut pidfd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the integer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut pidfd).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    if pidfd < 0 {
        return Err(Errno::NOPROTOOPT);
    }
    // SAFETY: the kernel has just made this descriptor for us (close-on-exec, as all pidfds).
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}
