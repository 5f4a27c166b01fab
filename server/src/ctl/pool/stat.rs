//! `kvstored ctl pool stat`.

use std::process::ExitCode;

use kvstored_core::Result;
use kvstored_core::size::format_bytes;
use kvstored_master::Status;

use super::Context;
use crate::ctl::table::table;
use crate::output::{emit, emit_json};

pub fn run(context: &Context) -> Result<ExitCode> {
    let status = context.client.status(context.deadline())?;
    if context.json {
        emit_json(&status)?;
    } else {
        emit(&text(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(status: &Status) -> String {
    if !status.leader {
        let leader = match status.leader_address.as_str() {
            "" => "none is known".to_owned(),
            address => format!("{address} does"),
        };
        return format!("this master doesn't lead; {leader}\n");
    }
    let recovering = if status.recovering { ", recovering" } else { "" };
    let head = format!(
        "epoch {}{recovering}: {} nodes lend {}; {} in use, {} waiting to be confirmed as free\n{} objects, {} puts under way\n",
        status.epoch,
        status.nodes,
        format_bytes(status.capacity_bytes),
        format_bytes(status.used_bytes),
        format_bytes(status.quarantined_bytes),
        status.objects,
        status.pending_puts,
    );
    let tenants: Vec<Vec<String>> = status
        .tenants
        .iter()
        .map(|tenant| {
            let quota = match tenant.quota_bytes {
                0 => "none".to_owned(),
                bytes => format_bytes(bytes),
            };
            let name = if tenant.name.is_empty() {
                "(default)"
            } else {
                &tenant.name
            };
            vec![
                name.to_owned(),
                tenant.objects.to_string(),
                format_bytes(tenant.used_bytes),
                quota,
            ]
        })
        .collect();
    let counted = status.counters.iter().filter(|(_, value)| *value > 0);
    let counters: Vec<Vec<String>> = counted
        .map(|(name, value)| vec![name.clone(), value.to_string()])
        .collect();
    format!(
        "{head}\n{}\n{}",
        table(&["tenant", "objects", "used", "quota"], &tenants),
        table(&["event", "count"], &counters)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_says_who_leads() {
        let mut status = Status {
            leader_address: "a:1".to_owned(),
            ..Status::default()
        };
        assert!(text(&status).contains("a:1 does"));
        status.leader = true;
        status.capacity_bytes = 1 << 30;
        assert!(text(&status).contains("lend 1GiB"));
    }
}
