//! The master's numbers as OpenMetrics text.

use std::fmt;

use kvstored_master::{DrainProgress, NodeStatus, Status, TenantStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::{Registry, Unit};

use super::http::AdminState;
use crate::http::Writer;

/// All metrics of a master.
pub(super) fn render(state: &AdminState) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("kvstored_master");
    let (clients, strangers, turned_away) = state.server.connections();
    registry.register_collector(Box::new(Numbers {
        status: state.server.status(),
        // a master that doesn't lead knows none
        nodes: state.server.nodes().unwrap_or_default(),
        start_unix_ms: state.start_unix_ms,
        connections: [("clients", clients), ("strangers", strangers)],
        turned_away,
    }));
    let mut text = String::with_capacity(8 << 10);
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Numbers {
    status: Status,
    nodes: Vec<NodeStatus>,
    start_unix_ms: u64,
    connections: [(&'static str, u64); 2],
    turned_away: u64,
}

impl Collector for Numbers {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut writer = Writer::new(encoder);
        let status = &self.status;
        let bytes = Some(&Unit::Bytes);
        let flag = |value: bool| f64::from(u8::from(value));
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        writer.gauges(
            "build_info",
            "The running version; always 1",
            None,
            [(version, 1.0)],
        )?;
        let started = self.start_unix_ms as f64 / 1e3;
        let seconds = Some(&Unit::Seconds);
        writer.gauge(
            "start_time",
            "When the master started, since the Unix epoch",
            seconds,
            started,
        )?;
        writer.gauge("leader", "1 while this master leads", None, flag(status.leader))?;
        writer.gauge(
            "recovering",
            "1 while nodes may be missing whose announcement hasn't come yet",
            None,
            flag(status.recovering),
        )?;
        let levels = [
            ("epoch", "The fencing epoch", None, status.epoch),
            ("nodes", "Nodes that lend memory", None, status.nodes),
            ("objects", "Complete objects", None, status.objects),
            ("pending_puts", "Puts under way", None, status.pending_puts),
            ("capacity", "Bytes that nodes lend", bytes, status.capacity_bytes),
            (
                "used",
                "Bytes of objects and of puts under way",
                bytes,
                status.used_bytes,
            ),
            (
                "quarantined",
                "Bytes that were released and that their nodes haven't confirmed as free",
                bytes,
                status.quarantined_bytes,
            ),
        ];
        for (name, help, unit, level) in levels {
            writer.gauge(name, help, unit, level as f64)?;
        }
        let connections = self
            .connections
            .iter()
            .map(|(of, count)| ([("of", *of)], *count as f64));
        writer.gauges(
            "connections",
            "Connections, by whether they showed the token",
            None,
            connections,
        )?;
        writer.counter(
            "strangers_turned_away",
            "Connections closed on strangers",
            None,
            self.turned_away,
        )?;
        self.tenants(&mut writer)?;
        self.drains(&mut writer)?;
        for (name, value) in &status.counters {
            let help = format!("Events: {}", name.replace('_', " "));
            writer.counter(name, &help, None, *value)?;
        }
        Ok(())
    }
}

/// Takes one number of a tenant.
type Level = fn(&TenantStatus) -> u64;
/// Takes one number of a node that is being emptied.
type DrainLevel = fn(&NodeStatus, &DrainProgress) -> u64;

impl Numbers {
    fn drains(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let levels: [(&str, &str, DrainLevel); 4] = [
            (
                "drain_replicas",
                "Replicas left on a node that is being emptied",
                |node, _| node.replicas,
            ),
            (
                "drain_moved_objects",
                "Objects copied from a node that is being emptied",
                |_, drain| drain.moved_objects,
            ),
            (
                "drain_moving_objects",
                "Objects being copied from a node that is being emptied",
                |_, drain| drain.moving_objects,
            ),
            (
                "drain_unplaced_objects",
                "Objects on a node that is being emptied that fit on no other",
                |_, drain| drain.unplaced_objects,
            ),
        ];
        let drained = || {
            let nodes = self.nodes.iter();
            nodes.filter_map(|node| Some((node, node.drain.as_ref()?)))
        };
        if drained().next().is_none() {
            return Ok(());
        }
        for (name, help, level) in levels {
            let samples =
                drained().map(|(node, drain)| ([("node", node.node.as_str())], level(node, drain) as f64));
            writer.gauges(name, help, None, samples)?;
        }
        Ok(())
    }

    fn tenants(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let bytes = Some(&Unit::Bytes);
        let levels: [(&str, &str, Option<&Unit>, Level); 3] = [
            ("tenant_used", "Bytes of a tenant's replicas", bytes, |tenant| {
                tenant.used_bytes
            }),
            ("tenant_objects", "Objects of a tenant", None, |tenant| {
                tenant.objects
            }),
            (
                "tenant_quota",
                "Limit of a tenant's bytes; 0 for none",
                bytes,
                |tenant| tenant.quota_bytes,
            ),
        ];
        for (name, help, unit, level) in levels {
            let samples = self
                .status
                .tenants
                .iter()
                .map(|tenant| ([("tenant", tenant.name.as_str())], level(tenant) as f64));
            writer.gauges(name, help, unit, samples)?;
        }
        Ok(())
    }
}
