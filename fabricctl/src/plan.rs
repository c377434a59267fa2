//! What a site takes with a card and a cable for each connection, and with a fabric in between.

use serde::Deserialize;

/// A site, its prices and what a fabric has.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Site {
    /// How many servers.
    pub servers: u32,
    /// Network ports of each.
    pub nics: u32,
    /// Storage ports of each.
    pub hbas: u32,
    /// How fast the ports are and what is promised on them.
    pub fabric: Fabric,
    /// What things cost.
    pub prices: Prices,
}

/// The fabric.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fabric {
    /// Fabric ports of each server.
    pub links: u32,
    /// Servers' links on an edge switch.
    pub hosts_per_switch: u32,
    /// Uplinks of an edge switch.
    pub uplinks: u32,
    /// Fabric ports of a director.
    pub director_ports: u32,
    /// What each link carries, Gb/s.
    pub link_gbps: f64,
    /// What of a link may be reserved, percent.
    pub reservable: f64,
    /// What is guaranteed to each link of a server, Gb/s.
    #[serde(default)]
    pub guaranteed_gbps: f64,
}

/// Prices, all in one currency.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[derive(Default)]
pub struct Prices {
    /// What they are in.
    pub currency: String,
    /// A network adapter port with its switch port and cable.
    pub nic: f64,
    /// A storage adapter port with its switch port and cable.
    pub hba: f64,
    /// A fabric adapter port with its cable.
    pub link: f64,
    /// An edge switch with the cables of its uplinks.
    pub edge_switch: f64,
    /// A director with its modules.
    pub director: f64,
    /// What else is bought without a fabric.
    pub rest_without: f64,
    /// What else is bought with one.
    pub rest_with: f64,
}

/// What a site takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Cables, adapters and switch ports without a fabric: one of each for a connection.
    pub connections: u64,
    /// Fabric ports of servers.
    pub links: u64,
    /// Edge switches.
    pub edge_switches: u64,
    /// Cables with a fabric.
    pub cables: u64,
    /// Directors.
    pub directors: u64,
    /// Cost without a fabric.
    pub cost_without: f64,
    /// Cost with one.
    pub cost_with: f64,
    /// The hops and what each link of a server may be guaranteed there, Gb/s.
    pub hops: Vec<(&'static str, f64)>,
}

impl Site {
    /// What it takes.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let servers = u64::from(self.servers);
        let (nics, hbas) = (
            servers * u64::from(self.nics),
            servers * u64::from(self.hbas),
        );
        let fabric = &self.fabric;
        let links = servers * u64::from(fabric.links);
        let edge_switches = links.div_ceil(u64::from(fabric.hosts_per_switch.max(1)));
        let uplinks = edge_switches * u64::from(fabric.uplinks);
        let directors = uplinks.div_ceil(u64::from(fabric.director_ports.max(1)));
        let prices = &self.prices;
        let times =
            |count: u64, price: f64| price * f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let reservable = fabric.link_gbps * fabric.reservable / 100.0;
        let shared = f64::from(fabric.uplinks) / f64::from(fabric.hosts_per_switch.max(1));
        Plan {
            connections: nics + hbas,
            links,
            edge_switches,
            cables: links + uplinks,
            directors,
            cost_without: times(nics, prices.nic) + times(hbas, prices.hba) + prices.rest_without,
            cost_with: times(links, prices.link)
                + times(edge_switches, prices.edge_switch)
                + times(directors, prices.director)
                + prices.rest_with,
            hops: vec![
                ("server link", reservable),
                ("edge switch uplinks", reservable * shared),
                ("director ports", reservable * shared),
            ],
        }
    }

    /// The plan in words.
    #[must_use]
    pub fn text(&self) -> String {
        let plan = self.plan();
        let saved = |without: f64, with: f64| match without > 0.0 {
            true => format!("{:.1} %", (1.0 - with / without) * 100.0),
            false => "-".to_owned(),
        };
        let count = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let currency = &self.prices.currency;
        let mut text = format!(
            "{} servers with {} NIC and {} HBA ports each\n\n\
             {:<16} {:>12} {:>12} {:>8}\n",
            self.servers, self.nics, self.hbas, "", "without", "with fabric", "less"
        );
        for (what, without, with) in [
            ("adapter ports", plan.connections, plan.links),
            ("cables", plan.connections, plan.cables),
            ("switch ports", plan.connections, plan.cables),
        ] {
            let less = saved(count(without), count(with));
            text += &format!("{what:<16} {without:>12} {with:>12} {less:>8}\n");
        }
        text += &format!(
            "{:<16} {:>12} {:>12}\n",
            "edge switches", 0, plan.edge_switches
        );
        text += &format!("{:<16} {:>12} {:>12}\n", "directors", 0, plan.directors);
        let (without, with) = (plan.cost_without, plan.cost_with);
        let cost = format!("cost, {currency}");
        text += &format!(
            "{cost:<16} {without:>12.0} {with:>12.0} {:>8}\n\n",
            saved(without, with)
        );
        let wanted = self.fabric.guaranteed_gbps;
        for (hop, most) in &plan.hops {
            let verdict = match wanted <= *most {
                true => "admitted".to_owned(),
                false => format!("refused: {:.2} Gb/s missing", wanted - most),
            };
            text += &format!(
                "{hop}: {wanted:.2} Gb/s for each server link of {most:.2} that can be: {verdict}\n"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c1_c2_c3_c4_the_sample_has_the_figures_of_the_slides() {
        let site: Site = toml::from_str(include_str!("../samples/120-servers.toml")).unwrap();
        let plan = site.plan();
        assert_eq!(
            (plan.connections, plan.links, plan.edge_switches),
            (720, 240, 12)
        );
        assert_eq!((plan.cables, plan.directors), (288, 2));
        let text = site.text();
        assert!(text.contains("35.7 %") && text.contains("60.0 %"), "{text}");
        // 20 servers share 4 uplinks: what a server link carries is not what it can be promised.
        assert!(
            text.contains("server link: 2.00 Gb/s for each server link of 9.50"),
            "{text}"
        );
        assert!(
            text.contains("edge switch uplinks") && text.contains("0.10 Gb/s missing"),
            "{text}"
        );
    }
}
