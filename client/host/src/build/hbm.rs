//! The tier `Hbm` from its settings.

use std::sync::Arc;

use kvstored_backends::device::{HostDevice, HostDeviceSettings};
use kvstored_backends::hbm::{HbmSettings, HbmTier};
use kvstored_core::{Device, Error, Result, Runtime};

use super::{ledger, plugin};
use crate::config::{HbmDevice, ServeSettings};

/// Opens the device and takes its memory. Fails as loading a plugin does, and with `NoSpace`.
pub(super) fn open_hbm(settings: &ServeSettings, runtime: &Runtime) -> Result<Arc<HbmTier>> {
    let missing = |what: &str| Error::internal(format!("a pipeline with {what} and no settings for it"));
    let options = settings.hbm.as_ref().ok_or_else(|| missing("Hbm"))?;
    let device: Arc<dyn Device> = match &options.device {
        HbmDevice::Host => {
            let memory = HostDeviceSettings {
                memory_bytes: options.capacity_bytes,
                huge_pages: settings.huge_pages,
            };
            HostDevice::new(memory, runtime.clone())
        }
        HbmDevice::Plugin(name) => {
            let plugins = settings.plugins.as_ref().ok_or_else(|| missing("a plugin"))?;
            plugin::open_device(name, plugins, runtime)?
        }
    };
    let hbm = HbmSettings {
        capacity_bytes: options.capacity_bytes,
        policy: settings.eviction_policy,
        ..HbmSettings::default()
    };
    HbmTier::open(hbm, &device, runtime, ledger(settings)?)
}
