//! `kvstored ctl pool ls`.

use std::process::ExitCode;

use kvstored_core::Result;

use super::Context;
use crate::ctl::table::table;
use crate::master::ObjectRow;
use crate::output::{emit, emit_json};

/// Objects asked for at once.
const PAGE: u64 = 1000;

/// Arguments of `kvstored ctl pool ls`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Only this tenant's; empty for the default one
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,

    /// Most objects that are shown; 0 for all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u64,
}

pub fn run(context: &Context, arguments: &Arguments) -> Result<ExitCode> {
    let most = if arguments.limit == 0 {
        u64::MAX
    } else {
        arguments.limit
    };
    let mut rows: Vec<ObjectRow> = Vec::new();
    let mut after = 0;
    loop {
        let wanted = (most - rows.len() as u64).min(PAGE) as u32;
        let tenant = arguments.tenant.as_deref();
        let page = context
            .client
            .objects(after, wanted, tenant, context.deadline())?;
        rows.extend(page.objects.iter().map(ObjectRow::from));
        after = page.next;
        if after == 0 || rows.len() as u64 >= most {
            break;
        }
    }
    if context.json {
        emit_json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let cells: Vec<Vec<String>> = rows.iter().map(row).collect();
    let headings = ["tenant", "key", "bytes", "state", "lease ms", "pin ms", "nodes"];
    emit(&table(&headings, &cells))?;
    if after != 0 {
        emit("there are more; --limit 0 shows all\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(object: &ObjectRow) -> Vec<String> {
    vec![
        object.tenant.clone(),
        object.key.clone(),
        object.length.to_string(),
        if object.complete { "complete" } else { "being put" }.to_owned(),
        object.lease_ms.to_string(),
        object.pin_ms.to_string(),
        object.nodes.join(","),
    ]
}
