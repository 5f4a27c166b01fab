//! Writing plugins for kvstored in Rust.
//!
//! Implement [`Tier`], say so with [`kvstored_plugin!`](crate::kvstored_plugin), build a `cdylib`. The crate needs
//! nothing but the standard library, so a plugin brings no version of anything into the process that loads it.
//!
//! ```
//! use kvstored_plugin::{Action, Durability, Failure, Host, Key, Kind, Operation, Settings, Tier};
//!
//! /// Has nothing and takes nothing.
//! struct Nothing;
//!
//! impl Tier for Nothing {
//!     const KEEPS: Durability = Durability::Memory;
//!
//!     fn open(_host: Host, settings: Settings) -> Result<Self, Failure> {
//!         settings.expect(&[])?;
//!         Ok(Self)
//!     }
//!
//!     fn submit(&self, operation: Operation) {
//!         match operation.action() {
//!             Action::Read => operation.fail(Failure::new(Kind::NotFound, "")),
//!             Action::Write(_) => operation.fail(Failure::new(Kind::NoSpace, "nothing fits")),
//!         }
//!     }
//!
//!     fn remove(&self, _keys: &[Key]) -> Result<(), Failure> {
//!         Ok(())
//!     }
//!
//!     fn purge(&self, _namespace: &[u8; 32]) -> Result<(), Failure> {
//!         Ok(())
//!     }
//! }
//!
//! kvstored_plugin::kvstored_plugin! { name: "nothing", version: "1.0.0", tier: Nothing }
//! ```
#![allow(unsafe_code)] // the boundary to C is what this crate is for

pub mod abi;
mod device;
mod export;
mod export_device;
mod export_transport;
mod failure;
mod host;
mod operation;
mod tier;
mod transport;

pub use device::{Copy, Device, DeviceStatistics, Direction};
#[doc(hidden)]
pub use export::vtable;
#[doc(hidden)]
pub use export_device::device_vtable;
#[doc(hidden)]
pub use export_transport::transport_vtable;
pub use failure::{Failure, Kind};
pub use host::{Host, Level, Log};
pub use operation::{Action, Durability, Memory, Operation};
pub use tier::{NamespaceInfo, Settings, Tier};
pub use transport::{Completion, Move, MoveDirection, Transport};

/// A block's whole name: namespace and hash.
pub type Key = abi::Key;
/// A tier's numbers; leave `struct_size` as it is.
pub type Statistics = abi::Statistics;

/// Exports a type that implements [`Tier`], one that implements [`Device`], both, or one that implements [`Transport`], as the
/// plugin of this library.
///
/// `name` is 1 to 64 of `a-z`, `0-9`, `-` and `_`, and the name of the file without `.so`.
#[macro_export]
macro_rules! kvstored_plugin {
    { name: $name:literal, version: $version:expr, tier: $tier:ty $(,)? } => {
        $crate::kvstored_plugin! { @export $name, $version,
            { static TIER: $crate::abi::Tier = $crate::vtable::<$tier>(); &raw const TIER },
            ::std::ptr::null(), ::std::ptr::null() }
    };
    { name: $name:literal, version: $version:expr, transport: $transport:ty $(,)? } => {
        $crate::kvstored_plugin! { @export $name, $version,
            ::std::ptr::null(), ::std::ptr::null(),
            { static TRANSPORT: $crate::abi::Transport = $crate::transport_vtable::<$transport>();
              &raw const TRANSPORT } }
    };
    { name: $name:literal, version: $version:expr, device: $device:ty $(,)? } => {
        $crate::kvstored_plugin! { @export $name, $version,
            ::std::ptr::null(),
            { static DEVICE: $crate::abi::Device = $crate::device_vtable::<$device>(); &raw const DEVICE },
            ::std::ptr::null() }
    };
    { name: $name:literal, version: $version:expr, tier: $tier:ty, device: $device:ty $(,)? } => {
        $crate::kvstored_plugin! { @export $name, $version,
            { static TIER: $crate::abi::Tier = $crate::vtable::<$tier>(); &raw const TIER },
            { static DEVICE: $crate::abi::Device = $crate::device_vtable::<$device>(); &raw const DEVICE },
            ::std::ptr::null() }
    };
    { @export $name:literal, $version:expr, $tier:expr, $device:expr, $transport:expr } => {
        /// The function that kvstored looks for.
        ///
        /// # Safety
        /// Takes no pointers; it's `unsafe` because every function with a fixed exported name is.
        #[allow(unsafe_code)]
        // SAFETY: the name is the interface's; a library has one plugin.
        #[unsafe(no_mangle)]
        pub extern "C" fn kvstored_plugin_entry(host_abi_version: u32) -> *const $crate::abi::Plugin {
            static PLUGIN: $crate::abi::Plugin = $crate::abi::Plugin {
                struct_size: ::std::mem::size_of::<$crate::abi::Plugin>() as u32,
                abi_version: $crate::abi::ABI_VERSION,
                name: concat!($name, "\0").as_ptr().cast(),
                version: concat!($version, "\0").as_ptr().cast(),
                tier: $tier,
                device: $device,
                transport: $transport,
            };
            if host_abi_version >> 16 == $crate::abi::ABI_VERSION >> 16 {
                &raw const PLUGIN
            } else {
                ::std::ptr::null()
            }
        }
    };
}
