//! Whose jobs they are: tenants and how much of the load each has.

use std::str::FromStr;

use cellbus_bus::ids::TenantId;
use rand::Rng as _;
use rand::rngs::SmallRng;

/// As many as a cluster may list (ops/docs/interface.md).
const TENANTS_MAX: usize = 1_000;
const WEIGHT_MAX: u32 = 1_000_000;

/// Tenants and their weights; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenants(Vec<(TenantId, u32)>);

/// Why a text names no tenants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{part:?}: tenants are name=weight, separated by commas: acme=5,globex=1; up to {TENANTS_MAX} different ones, \
     weights 1 to {WEIGHT_MAX}, and a name alone has weight 1"
)]
pub struct InvalidTenants {
    /// What is not understood.
    part: String,
}

impl Tenants {
    /// One tenant that has all of it.
    #[must_use]
    pub fn one(tenant: TenantId) -> Self {
        Self(vec![(tenant, 1)])
    }
    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
    /// Each, with its weight.
    pub fn iter(&self) -> impl Iterator<Item = (&TenantId, u32)> {
        self.0.iter().map(|(tenant, weight)| (tenant, *weight))
    }
    /// The name of one.
    pub(super) fn name(&self, tenant: usize) -> &str {
        self.0[tenant].0.as_str()
    }
    /// One of them, by its weight.
    pub(super) fn draw(&self, rng: &mut SmallRng) -> usize {
        if self.0.len() == 1 {
            return 0;
        }
        let mut left = rng.random_range(0..self.0.iter().map(|(_, weight)| u64::from(*weight)).sum());
        for (index, (_, weight)) in self.0.iter().enumerate() {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return index,
            }
        }
        // Weights sum to what was drawn from, so that one of them was met.
        0
    }
}

impl FromStr for Tenants {
    type Err = InvalidTenants;
    fn from_str(text: &str) -> Result<Self, InvalidTenants> {
        let mut tenants: Vec<(TenantId, u32)> = Vec::new();
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let tenant = name.trim().parse::<TenantId>().ok();
            let weight = weight.trim().parse().ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight));
            let named = tenant.zip(weight).filter(|(tenant, _)| tenants.iter().all(|(known, _)| known != tenant));
            match named.filter(|_| tenants.len() < TENANTS_MAX) {
                Some(named) => tenants.push(named),
                None => return Err(InvalidTenants { part: part.chars().take(64).collect() }),
            }
        }
        Ok(Self(tenants))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn tenants_are_drawn_by_their_weights() {
        let tenants: Tenants = "a=5, b=1,c".parse().unwrap();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut drawn = [0; 3];
        (0..7_000).for_each(|_| drawn[tenants.draw(&mut rng)] += 1);
        assert!((4_800..5_200).contains(&drawn[0]) && (850..1_150).contains(&drawn[1]), "{drawn:?}");
        assert_eq!((tenants.count(), tenants.name(2)), (3, "c"));
        for bad in ["", "a=0", "a=x", "A=1", "a=1,,b=1", "a=1,a=2", "a=1000001", "a=-1"] {
            assert!(bad.parse::<Tenants>().is_err(), "{bad}");
        }
        let many: Vec<String> = (0..1_001).map(|n| format!("t{n}")).collect();
        assert!(many[1..].join(",").parse::<Tenants>().is_ok() && many.join(",").parse::<Tenants>().is_err());
    }
}
