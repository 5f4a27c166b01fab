//! Loading a checked file and checking what it exports.
#![allow(unsafe_code)]

use std::fs::File;
use std::mem::{ManuallyDrop, offset_of};
use std::os::fd::{AsRawFd, IntoRawFd};

use kvstored_core::{Durability, Error, ErrorKind, Result};
use kvstored_plugin::abi;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::device_functions::DeviceFunctions;
use crate::transport_functions::TransportFunctions;

/// Longest name and version.
const MOST_TEXT_BYTES: usize = 64;

/// What a plugin says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginFacts {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The interface that it was built for.
    pub abi_version: u32,
    /// How safe a block gets in its tier; `None` if it has no tier.
    pub keeps: Option<Durability>,
    /// Whether it has a device.
    pub is_device: bool,
    /// Whether it has a transport.
    pub is_transport: bool,
}

/// A tier's functions, all of them there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Functions {
    pub open:
        unsafe extern "C" fn(*const abi::Host, *const abi::Setting, u64, *mut *mut std::ffi::c_void) -> i32,
    pub open_namespace: unsafe extern "C" fn(*mut std::ffi::c_void, *const abi::Namespace) -> i32,
    pub submit: unsafe extern "C" fn(*mut std::ffi::c_void, *const abi::Operation, u64),
    pub remove: unsafe extern "C" fn(*mut std::ffi::c_void, *const abi::Key, u64) -> i32,
    pub purge: unsafe extern "C" fn(*mut std::ffi::c_void, *const u8) -> i32,
    pub statistics: unsafe extern "C" fn(*mut std::ffi::c_void, *mut abi::Statistics) -> i32,
    pub drain: unsafe extern "C" fn(*mut std::ffi::c_void, u64) -> i32,
    pub close: unsafe extern "C" fn(*mut std::ffi::c_void),
}

/// A loaded plugin.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub facts: PluginFacts,
    pub functions: Option<Functions>,
    pub device: Option<DeviceFunctions>,
    pub transport: Option<TransportFunctions>,
}

/// Loads a file, which stays loaded, and checks what it exports.
///
/// Fails with `Unsupported` for another version of the interface, and with `InvalidInput`, saying what is wrong, for
/// what is no plugin.
pub(crate) fn load(file: File, name: &str) -> Result<Loaded> {
    let invalid = |what: String| Error::invalid(format!("plugin {name}: {what}"));
    // by descriptor, so that what was checked is what is loaded
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the file's initialisers run here. The operator has listed this very file, and it was tried in a process of
    // its own.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| invalid(format!("can't be loaded: {error}")))?;
    // threads and callbacks of a plugin may outlive every use that we know of
    let library = ManuallyDrop::new(library);
    // the loader knows libraries by their paths, so this path, and with it the descriptor, must never be another file's
    let _ = file.into_raw_fd();
    // SAFETY: the interface fixes the function's type.
    let entry = unsafe { library.get::<abi::Entry>(abi::ENTRY_SYMBOL) }
        .map_err(|error| invalid(format!("exports no kvstored_plugin_entry: {error}")))?;
    // SAFETY: as above.
    let plugin = unsafe { entry(abi::ABI_VERSION) };
    if plugin.is_null() {
        return Err(unsupported(
            name,
            "it doesn't work with this version of the interface",
        ));
    }
    if !plugin.is_aligned() {
        return Err(invalid("its description isn't aligned".into()));
    }
    // SAFETY: the interface says that it points to at least the size and the version.
    let (size, version) = unsafe { ((*plugin).struct_size, (*plugin).abi_version) };
    if version >> 16 != abi::ABI_VERSION >> 16 {
        let what = format!("it was built for version {}.{}", version >> 16, version & 0xFFFF);
        return Err(unsupported(name, &what));
    }
    at_least("its description", size, abi::PLUGIN_BYTES_1_0).map_err(&invalid)?;
    // SAFETY: the size covers the fields that are read.
    let plugin = unsafe {
        abi::Plugin {
            struct_size: size,
            abi_version: version,
            name: (*plugin).name,
            version: (*plugin).version,
            tier: (*plugin).tier,
            device: if holds(size, offset_of!(abi::Plugin, device)) {
                (*plugin).device
            } else {
                std::ptr::null()
            },
            transport: if holds(size, offset_of!(abi::Plugin, transport)) {
                (*plugin).transport
            } else {
                std::ptr::null()
            },
        }
    };
    if plugin.tier.is_null() && plugin.device.is_null() && plugin.transport.is_null() {
        return Err(invalid(
            "it has neither a tier nor a device nor a transport".into(),
        ));
    }
    // SAFETY: the interface says that each points to a table with its size in front, if to anything.
    let (tier, device, transport) = unsafe {
        (
            table(plugin.tier, "its tier's table").map_err(&invalid)?,
            table(plugin.device, "its device's table").map_err(&invalid)?,
            table(plugin.transport, "its transport's table").map_err(&invalid)?,
        )
    };
    // SAFETY: the interface says that both are texts with a zero at the end.
    let (own_name, version_text) = unsafe { (text(plugin.name), text(plugin.version)) };
    let own_name = own_name.ok_or_else(|| invalid("its name can't be read".into()))?;
    if own_name != name {
        return Err(invalid(format!("it calls itself \"{own_name}\"")));
    }
    let keeps = match tier.as_ref().map(|tier| tier.keeps) {
        None => None,
        Some(abi::MEMORY) => Some(Durability::Memory),
        Some(abi::TIER) => Some(Durability::Tier),
        Some(abi::DURABLE) => Some(Durability::Durable),
        Some(other) => return Err(invalid(format!("its tier keeps blocks at level {other}"))),
    };
    let functions = tier
        .map(|tier| functions(&tier).ok_or_else(|| invalid("its tier's table lacks a function".into())))
        .transpose()?;
    let device = device
        .map(|device| {
            DeviceFunctions::of(&device).ok_or_else(|| invalid("its device's table lacks a function".into()))
        })
        .transpose()?;
    let transport = transport
        .map(|transport| {
            let functions = TransportFunctions::of(&transport);
            functions.ok_or_else(|| invalid("its transport's table lacks a function".into()))
        })
        .transpose()?;
    Ok(Loaded {
        facts: PluginFacts {
            name: own_name,
            version: version_text.ok_or_else(|| invalid("its version can't be read".into()))?,
            abi_version: plugin.abi_version,
            keeps,
            is_device: device.is_some(),
            is_transport: transport.is_some(),
        },
        functions,
        device,
        transport,
    })
}

/// Whether a description of that size has the pointer at that offset.
fn holds(size: u32, offset: usize) -> bool {
    size as usize >= offset + size_of::<*const u8>()
}

/// A table of a plugin, if it has it. Fails with what is wrong with it.
///
/// # Safety
/// The pointer must be null or point to a struct that begins with its size, 32 bits.
unsafe fn table<T: Copy>(table: *const T, what: &str) -> Result<Option<T>, String> {
    if table.is_null() {
        return Ok(None);
    }
    if !table.is_aligned() {
        return Err(format!("{what} isn't aligned"));
    }
    // SAFETY: the caller vouches for the size in front.
    at_least(what, unsafe { *table.cast::<u32>() }, size_of::<T>())?;
    // SAFETY: the size covers the functions of this version.
    Ok(Some(unsafe { *table }))
}

/// A size that a plugin states: at least what this version needs, and no rubbish.
fn at_least(what: &str, stated: u32, needed: usize) -> Result<(), String> {
    const MOST: usize = 4096;
    if (needed..=MOST).contains(&(stated as usize)) {
        Ok(())
    } else {
        Err(format!(
            "{what} has {stated} bytes; {needed} to {MOST} are accepted"
        ))
    }
}

fn functions(tier: &abi::Tier) -> Option<Functions> {
    Some(Functions {
        open: tier.open?,
        open_namespace: tier.open_namespace?,
        submit: tier.submit?,
        remove: tier.remove?,
        purge: tier.purge?,
        statistics: tier.statistics?,
        drain: tier.drain?,
        close: tier.close?,
    })
}

/// The text at `start`, which is short and printable, or nothing.
///
/// # Safety
/// `start` must be null or point to a text that is ended by a zero. Nothing behind its 65th byte is looked at.
unsafe fn text(start: *const std::ffi::c_char) -> Option<String> {
    if start.is_null() {
        return None;
    }
    let mut bytes = Vec::new();
    while bytes.len() <= MOST_TEXT_BYTES {
        // SAFETY: no zero came before this byte, so the text goes on up to it.
        let byte = unsafe { *start.add(bytes.len()) } as u8;
        if byte == 0 {
            break;
        }
        bytes.push(byte);
    }
    let fine = (1..=MOST_TEXT_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    fine.then(|| String::from_utf8_lossy(&bytes).into_owned())
}

fn unsupported(name: &str, what: &str) -> Error {
    let (major, minor) = (abi::ABI_VERSION >> 16, abi::ABI_VERSION & 0xFFFF);
    Error::new(
        ErrorKind::Unsupported,
        format!("plugin {name}: {what}; this build has version {major}.{minor}"),
    )
}
