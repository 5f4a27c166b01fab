//! Loads and dumps of engine memory on a device.

use kvstored_core::device::RawEvent;
use kvstored_core::error::Result;

use crate::client::Client;
use crate::device::DeviceHandle;
use crate::request::{DumpRequest, LoadRequest, NamespaceHandle};
use crate::task::Task;

impl Client {
    /// As [`Client::load`], into memory on a device: verified in the arena, then copied many blocks at a time. Copies begin
    /// after the engine's event: when it has done what it does with the memory.
    ///
    /// # Safety
    /// As for [`Client::load`], on the device; the event must be a live one of the device's runtime in this process, until
    /// the task has ended. Where a block fails with `Unavailable` because copies don't end, the memory stays the device's.
    #[allow(unsafe_code)] // the caller's promise is passed on to the copy plan
    pub unsafe fn load_to_device(
        &self,
        namespace: &NamespaceHandle,
        request: LoadRequest,
        device: &DeviceHandle,
        after: Option<RawEvent>,
    ) -> Result<Task> {
        // SAFETY: the caller vouches for the tensors' memory and the event until the task's end.
        unsafe { self.load_at(namespace, request, device.place(after)) }
    }

    /// As [`Client::dump`], from memory on a device, many blocks at a time. Copies begin after the engine's event: when it
    /// has computed the blocks.
    ///
    /// # Safety
    /// As for [`Client::dump`], on the device; the event must be a live one of the device's runtime in this process, until
    /// the task has ended.
    #[allow(unsafe_code)] // the caller's promise is passed on to the copy plan
    pub unsafe fn dump_from_device(
        &self,
        namespace: &NamespaceHandle,
        request: DumpRequest,
        device: &DeviceHandle,
        after: Option<RawEvent>,
    ) -> Result<Task> {
        // SAFETY: the caller vouches for the tensors' memory and the event until the task's end.
        unsafe { self.dump_at(namespace, request, device.place(after)) }
    }
}
