//! The native module of the Python package `kvstored`. Private: the package wraps it in a typed layer.
//!
//! Every call that may wait or copy lets other Python threads run meanwhile. Nothing here survives a fork: objects made
//! before one refuse to work in the child.

mod addresses;
mod arguments;
mod configuration;
mod device;
mod dump_session;
mod embedded;
mod engine_settings;
mod events;
mod failure;
mod handoff;
mod hashes;
mod home;
mod logging;
mod mooncake;
mod namespace;
mod store;
mod task;
mod task_report;

use pyo3::prelude::*;

#[pymodule(name = "_native")]
fn native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<store::Store>()?;
    module.add_class::<namespace::Namespace>()?;
    module.add_class::<dump_session::DumpSession>()?;
    module.add_class::<device::Device>()?;
    module.add_class::<device::DeviceEvent>()?;
    module.add_class::<events::Events>()?;
    module.add_class::<task::Task>()?;
    module.add_class::<task_report::TaskReport>()?;
    module.add_class::<mooncake::TransferEngine>()?;
    module.add_class::<mooncake::PoolStore>()?;
    module.add_class::<handoff::Handoff>()?;
    module.add_function(wrap_pyfunction!(configuration::default_socket, module)?)?;
    module.add_function(wrap_pyfunction!(configuration::check_configuration, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
