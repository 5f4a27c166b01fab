//! Devices with an engine's memory on them, through plugins.
#![allow(unsafe_code)]
//!
//! As with addresses, Python's caller vouches for raw handles: streams and events of the device's runtime in this process.

use std::path::PathBuf;
use std::sync::Arc;

use kvstored_client::DeviceHandle;
use kvstored_core::device::{Event, RawEvent, RawStream};
use kvstored_core::{Device as StoreDevice, Error, Result, Runtime};
use kvstored_host::config::{Environment, PluginOptions, PluginSetting};
use kvstored_host::open_device;
use pyo3::prelude::*;

use crate::failure::{Outcome, detached};
use crate::home::Home;
use crate::logging;

/// A device of the engine in this process. Private: `kvstored.Device` wraps it.
#[pyclass(frozen, module = "kvstored._native")]
pub struct Device {
    driver: Arc<dyn StoreDevice>,
    handle: DeviceHandle,
    home: Home,
}

/// A point of one of the engine's streams.
#[pyclass(frozen, module = "kvstored")]
pub struct DeviceEvent {
    event: Arc<Event>,
    home: Home,
}

/// What copies wait for: an event that was recorded here, or one of the engine's by its handle.
#[derive(FromPyObject)]
pub enum After {
    Recorded(Py<DeviceEvent>),
    Raw(u64),
}

/// Where a task's memory is.
pub struct Place {
    pub device: DeviceHandle,
    pub after: Option<RawEvent>,
    /// Must live as long as the task.
    pub event: Option<Arc<Event>>,
}

impl Place {
    /// From what Python gave; `None` for memory of this process. Fails with `InvalidInput` for an event without a device.
    pub fn of(device: Option<&Device>, after: Option<After>) -> Result<Option<Self>> {
        let Some(device) = device else {
            return match after {
                Some(_) => Err(Error::invalid("after has no meaning without a device")),
                None => Ok(None),
            };
        };
        device.home.check()?;
        let (after, event) = match after {
            None | Some(After::Raw(0)) => (None, None),
            Some(After::Raw(handle)) => (Some(RawEvent(handle)), None),
            Some(After::Recorded(recorded)) => {
                let recorded = recorded.get();
                recorded.home.check()?;
                (Some(recorded.event.raw()), Some(recorded.event.clone()))
            }
        };
        Ok(Some(Self {
            device: device.handle.clone(),
            after,
            event,
        }))
    }
}

#[pymethods]
impl Device {
    /// Loads a plugin and opens its device.
    #[staticmethod]
    #[pyo3(signature = (plugin, directory, settings, timeout_ms))]
    fn open(
        py: Python<'_>,
        plugin: String,
        directory: Option<PathBuf>,
        settings: Vec<(String, String)>,
        timeout_ms: u64,
    ) -> Outcome<Self> {
        logging::start();
        detached(py, || {
            let setting = |(key, value)| PluginSetting {
                plugin: plugin.clone(),
                key,
                value,
            };
            let settings = settings.into_iter().map(setting).collect();
            let environment = Environment::current();
            let options =
                PluginOptions::without_pipeline(directory, settings, Some(timeout_ms), &environment)?;
            let runtime = Runtime::system();
            let driver = open_device(&plugin, &options, &runtime)?;
            Ok(Self {
                handle: DeviceHandle::new(driver.clone(), runtime),
                driver,
                home: Home::here(),
            })
        })
    }

    /// The device in logs.
    #[getter]
    fn name(&self) -> &str {
        self.driver.name()
    }

    /// Whether copies were given up that may still be under way.
    #[getter]
    fn is_lost(&self) -> bool {
        self.handle.is_lost()
    }

    /// Batch calls, single calls and copies so far.
    #[getter]
    fn counts(&self, py: Python<'_>) -> (u64, u64, u64) {
        let counts = py.detach(|| self.driver.counts());
        (counts.batch_calls, counts.single_calls, counts.copies)
    }

    /// Marks the present end of a stream of the engine's.
    fn record(&self, py: Python<'_>, stream: u64) -> Outcome<DeviceEvent> {
        detached(py, || {
            self.home.check()?;
            let event = Event::create(&self.driver)?;
            // SAFETY: the caller in Python vouches for the stream; the event is ours.
            unsafe { self.driver.record_event(RawStream(stream), event.raw()) }?;
            Ok(DeviceEvent {
                event,
                home: self.home,
            })
        })
    }
}

#[pymethods]
impl DeviceEvent {
    /// The handle.
    #[getter]
    fn handle(&self) -> u64 {
        self.event.raw().0
    }

    /// Whether the device has come to it.
    fn is_reached(&self, py: Python<'_>) -> Outcome<bool> {
        detached(py, || {
            self.home.check()?;
            self.event.is_reached()
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.home.is_left() {
            // its streams and its registrations are another process's
            std::mem::forget((self.handle.clone(), self.driver.clone()));
        }
    }
}

impl Drop for DeviceEvent {
    fn drop(&mut self) {
        if self.home.is_left() {
            // it belongs to the runtime of another process
            std::mem::forget(self.event.clone());
        }
    }
}
