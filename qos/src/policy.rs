//! Named policies: rate words that many devices refer to by one name, as in the original.
//!
//! A reference is written `set/policy`, like `default/100m_250m`. A *network* policy is what the
//! original calls a policer and is for vNICs, a *SAN* policy is a shaper and is for vHBAs; both are
//! applied by shaping here: nothing is dropped. Each kind has its own sets.
//!
//! The set `default` of each kind is predefined and cannot be changed, extended or removed, so that
//! it means the same everywhere. Its names are `cir_pir`, in **bits per second** and decimal units
//! for both kinds: the original explains the SAN names in a mix of megabytes and gigabits per
//! second.
//!
//! | kind | predefined |
//! | --- | --- |
//! | network | `64k_1m` `1m_10m` `10m_50m` `10m_100m` `10m_1g` `50m_100m` `100m_250m` `100m_1g` `250m_500m` `500m_750m` `750m_1g` `1g_10g` `2g_10g` ... `9g_10g` |
//! | SAN | `50M_125M` `125M_250M` `250M_500M` `500M_1G` `1G_2G` `2G_4G` `2G_8G` `4G_6G` `4G_8G` `6G_8G` |
//!
//! A device has one [`Attachment`] for each direction. [`PolicyRate`] and [`parse_burst_bytes`] read
//! rates and bursts as the command language writes them.

mod units;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::str::FromStr;

use crate::rate::{BitRate, DeviceRate, InvalidRate};
pub use units::{ParsePolicyUnitError, PolicyRate, parse_burst_bytes};

/// The predefined set of each kind.
pub const DEFAULT_SET: &str = "default";

/// Bytes of the name of a set or policy at most.
pub const POLICY_NAME_BYTES_MAX: usize = 63;

/// Policies of one catalog at most, beside the predefined ones. More are refused.
pub const POLICIES_MAX: usize = 4_096;

/// How many policies a refusal offers instead of one that is not there.
const NEAREST_MAX: usize = 3;

const K: u64 = 1_000;
const M: u64 = 1_000_000;
const G: u64 = 1_000_000_000;

/// Name, CIR and PIR in bits per second.
type Predefined = (&'static str, u64, u64);

const NETWORK_DEFAULT: [Predefined; 20] = [
    ("64k_1m", 64 * K, M),
    ("1m_10m", M, 10 * M),
    ("10m_50m", 10 * M, 50 * M),
    ("10m_100m", 10 * M, 100 * M),
    ("10m_1g", 10 * M, G),
    ("50m_100m", 50 * M, 100 * M),
    ("100m_250m", 100 * M, 250 * M),
    ("100m_1g", 100 * M, G),
    ("250m_500m", 250 * M, 500 * M),
    ("500m_750m", 500 * M, 750 * M),
    ("750m_1g", 750 * M, G),
    ("1g_10g", G, 10 * G),
    ("2g_10g", 2 * G, 10 * G),
    ("3g_10g", 3 * G, 10 * G),
    ("4g_10g", 4 * G, 10 * G),
    ("5g_10g", 5 * G, 10 * G),
    ("6g_10g", 6 * G, 10 * G),
    ("7g_10g", 7 * G, 10 * G),
    ("8g_10g", 8 * G, 10 * G),
    ("9g_10g", 9 * G, 10 * G),
];

const SAN_DEFAULT: [Predefined; 10] = [
    ("50M_125M", 50 * M, 125 * M),
    ("125M_250M", 125 * M, 250 * M),
    ("250M_500M", 250 * M, 500 * M),
    ("500M_1G", 500 * M, G),
    ("1G_2G", G, 2 * G),
    ("2G_4G", 2 * G, 4 * G),
    ("2G_8G", 2 * G, 8 * G),
    ("4G_6G", 4 * G, 6 * G),
    ("4G_8G", 4 * G, 8 * G),
    ("6G_8G", 6 * G, 8 * G),
];

/// What a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// vNICs; the original's policer.
    Network,
    /// vHBAs; the original's shaper.
    San,
}

impl PolicyKind {
    /// What one policy of the kind is called.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Network => "network policer",
            Self::San => "SAN shaper",
        }
    }

    const fn predefined(self) -> &'static [Predefined] {
        match self {
            Self::Network => &NETWORK_DEFAULT,
            Self::San => &SAN_DEFAULT,
        }
    }
}

/// The name of a policy: its set and its name in the set, written `set/policy`.
///
/// Both are 1 to [`POLICY_NAME_BYTES_MAX`] letters, digits, `-` and `_`; case counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName {
    set: String,
    policy: String,
}

impl PolicyName {
    /// The policy called `policy` of `set`.
    ///
    /// # Errors
    /// [`PolicyError::Name`] when one of them is not usable.
    pub fn new(set: &str, policy: &str) -> Result<Self, PolicyError> {
        for name in [set, policy] {
            let usable = (1..=POLICY_NAME_BYTES_MAX).contains(&name.len())
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
            if !usable {
                let name = name.to_owned();
                return Err(PolicyError::Name { name });
            }
        }
        Ok(Self {
            set: set.to_owned(),
            policy: policy.to_owned(),
        })
    }

    /// The name of the set.
    #[must_use]
    pub fn set(&self) -> &str {
        &self.set
    }

    /// The name in the set.
    #[must_use]
    pub fn policy(&self) -> &str {
        &self.policy
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.set, self.policy)
    }
}

impl FromStr for PolicyName {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (set, policy) = text.split_once('/').ok_or_else(|| PolicyError::Reference {
            text: text.to_owned(),
        })?;
        Self::new(set, policy)
    }
}

/// Why something cannot be done with policies. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Without a slash.
    #[error("policy {text:?} is not written as set/policy; write it like default/100m_250m")]
    Reference {
        /// The text.
        text: String,
    },
    /// A name with other characters, empty or too long.
    #[error(
        "policy name {name:?} is not usable; use 1 to {POLICY_NAME_BYTES_MAX} letters, digits, \
         '-' and '_'"
    )]
    Name {
        /// The name of a set or policy.
        name: String,
    },
    /// No policy of this name.
    #[error("there is no {} {name}; the nearest are {}", kind.noun(), listed(nearest))]
    NoSuchPolicy {
        /// What was looked for.
        kind: PolicyKind,
        /// Its name.
        name: PolicyName,
        /// What there is instead, nearest first.
        nearest: Vec<PolicyName>,
    },
    /// The set has a policy of this name.
    #[error("{} {name} exists; choose another name", kind.noun())]
    Taken {
        /// What was to be added.
        kind: PolicyKind,
        /// Its name.
        name: PolicyName,
    },
    /// The set `default` stays as it is.
    #[error("{} {name}: set {DEFAULT_SET} is predefined; use a set of your own", kind.noun())]
    Predefined {
        /// What was to be added, changed or removed.
        kind: PolicyKind,
        /// Its name.
        name: PolicyName,
    },
    /// The rate words do not fit together.
    #[error("{} {name}: rate words do not fit together", kind.noun())]
    InvalidRate {
        /// What was to be added or changed.
        kind: PolicyKind,
        /// Its name.
        name: PolicyName,
        /// What does not fit.
        #[source]
        source: InvalidRate,
    },
    /// The catalog is full.
    #[error("{} {name}: {POLICIES_MAX} policies are the most; remove one first", kind.noun())]
    TooMany {
        /// What was to be added.
        kind: PolicyKind,
        /// Its name.
        name: PolicyName,
    },
    /// There is no binding to enable.
    #[error("no policy is attached; attach one like default/100m_250m first")]
    NothingAttached,
}

fn listed(names: &[PolicyName]) -> String {
    let names: Vec<_> = names.iter().map(PolicyName::to_string).collect();
    names.join(", ")
}

/// The policies of one set: one for a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet(BTreeMap<String, DeviceRate>);

impl PolicySet {
    /// The rate words of the policy called `policy`.
    #[must_use]
    pub fn policy(&self, policy: &str) -> Option<&DeviceRate> {
        self.0.get(policy)
    }

    /// All policies with their rate words, by name.
    pub fn policies(&self) -> impl Iterator<Item = (&str, &DeviceRate)> {
        self.0.iter().map(|(name, rate)| (name.as_str(), rate))
    }
}

/// All policy sets: the predefined ones and those of the operator.
///
/// A set comes with its first policy and goes with its last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyCatalog {
    sets: BTreeMap<(PolicyKind, String), PolicySet>,
}

impl Default for PolicyCatalog {
    fn default() -> Self {
        let sets = [PolicyKind::Network, PolicyKind::San].map(|kind| {
            let policies = kind.predefined().iter().map(|&(name, cir, pir)| {
                let rate = DeviceRate {
                    cir: BitRate::from_bits_per_second(cir),
                    pir: Some(BitRate::from_bits_per_second(pir)),
                    ..DeviceRate::default()
                };
                (name.to_owned(), rate)
            });
            let set = PolicySet(policies.collect());
            ((kind, DEFAULT_SET.to_owned()), set)
        });
        Self { sets: sets.into() }
    }
}

impl PolicyCatalog {
    /// The set called `set`.
    #[must_use]
    pub fn set(&self, kind: PolicyKind, set: &str) -> Option<&PolicySet> {
        self.sets.get(&(kind, set.to_owned()))
    }

    /// All sets of a kind, by name.
    pub fn sets(&self, kind: PolicyKind) -> impl Iterator<Item = (&str, &PolicySet)> {
        let of_kind = self.sets.iter().filter(move |((of, _), _)| *of == kind);
        of_kind.map(|((_, name), set)| (name.as_str(), set))
    }

    /// The rate words of a policy.
    ///
    /// # Errors
    /// [`PolicyError::NoSuchPolicy`], with the names nearest to `name`.
    pub fn find(&self, kind: PolicyKind, name: &PolicyName) -> Result<DeviceRate, PolicyError> {
        self.rate(kind, name)
            .copied()
            .ok_or_else(|| self.no_such(kind, name))
    }

    /// Adds a policy, and its set when this is the first one.
    ///
    /// # Errors
    /// [`PolicyError`] when the name is taken or in the predefined set, the rate words do not fit
    /// together, or there are [`POLICIES_MAX`].
    pub fn add(
        &mut self,
        kind: PolicyKind,
        name: PolicyName,
        rate: DeviceRate,
    ) -> Result<(), PolicyError> {
        check(kind, &name, Some(&rate))?;
        if self.rate(kind, &name).is_some() {
            return Err(PolicyError::Taken { kind, name });
        }
        let own = self.sets.iter().filter(|((_, set), _)| set != DEFAULT_SET);
        if own.map(|(_, set)| set.0.len()).sum::<usize>() >= POLICIES_MAX {
            return Err(PolicyError::TooMany { kind, name });
        }
        let set = self.sets.entry((kind, name.set)).or_default();
        set.0.insert(name.policy, rate);
        Ok(())
    }

    /// Gives a policy other rate words. Devices follow once their attachment is resolved again.
    ///
    /// # Errors
    /// [`PolicyError`] when it is predefined or not there, or the rate words do not fit together.
    pub fn change(
        &mut self,
        kind: PolicyKind,
        name: &PolicyName,
        rate: DeviceRate,
    ) -> Result<(), PolicyError> {
        check(kind, name, Some(&rate))?;
        self.find(kind, name)?;
        if let Some(set) = self.sets.get_mut(&(kind, name.set.clone())) {
            set.0.insert(name.policy.clone(), rate);
        }
        Ok(())
    }

    /// Removes a policy and returns its rate words. Attachments are the caller's: one that still
    /// names the policy does not resolve any more.
    ///
    /// # Errors
    /// [`PolicyError`] when it is predefined or not there.
    pub fn remove(
        &mut self,
        kind: PolicyKind,
        name: &PolicyName,
    ) -> Result<DeviceRate, PolicyError> {
        check(kind, name, None)?;
        let rate = self.find(kind, name)?;
        if let Entry::Occupied(mut set) = self.sets.entry((kind, name.set.clone())) {
            set.get_mut().0.remove(&name.policy);
            if set.get().0.is_empty() {
                set.remove();
            }
        }
        Ok(rate)
    }

    fn rate(&self, kind: PolicyKind, name: &PolicyName) -> Option<&DeviceRate> {
        self.set(kind, &name.set)?.policy(&name.policy)
    }

    fn no_such(&self, kind: PolicyKind, name: &PolicyName) -> PolicyError {
        let wanted = name.to_string().to_ascii_lowercase();
        let mut names: Vec<_> = self
            .sets(kind)
            .flat_map(|(set, policies)| policies.0.keys().map(move |policy| (set, policy)))
            .map(|(set, policy)| PolicyName {
                set: set.to_owned(),
                policy: policy.clone(),
            })
            .collect();
        // Stable: names that are equally near stay in their order.
        names.sort_by_cached_key(|known| {
            strsim::damerau_levenshtein(&wanted, &known.to_string().to_ascii_lowercase())
        });
        names.truncate(NEAREST_MAX);
        PolicyError::NoSuchPolicy {
            kind,
            name: name.clone(),
            nearest: names,
        }
    }
}

/// What must hold before a policy is added, changed or removed.
fn check(
    kind: PolicyKind,
    name: &PolicyName,
    rate: Option<&DeviceRate>,
) -> Result<(), PolicyError> {
    if name.set == DEFAULT_SET {
        let name = name.clone();
        return Err(PolicyError::Predefined { kind, name });
    }
    rate.map_or(Ok(()), DeviceRate::validate)
        .map_err(|source| PolicyError::InvalidRate {
            kind,
            name: name.clone(),
            source,
        })
}

/// Which policy one direction of a device follows.
///
/// ```text
///           attach                 disable
///   None ------------> Enabled -------------> Disabled
///     ^                |  ^ ^                  |  |
///     |      none      |  | +----- enable -----+  |
///     +----------------+  +------- attach --------+
///     +------------------- none ------------------+
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Attachment {
    /// No policy: the device's own words.
    #[default]
    None,
    /// The policy's words.
    Enabled(PolicyName),
    /// The device's own words, until the policy is enabled again.
    Disabled(PolicyName),
}

impl Attachment {
    /// Binds a policy in place of any other and enables it.
    pub fn attach(&mut self, policy: PolicyName) {
        *self = Self::Enabled(policy);
    }

    /// Lets the bound policy have effect.
    ///
    /// # Errors
    /// [`PolicyError::NothingAttached`].
    pub fn enable(&mut self) -> Result<(), PolicyError> {
        let policy = self.policy().ok_or(PolicyError::NothingAttached)?;
        *self = Self::Enabled(policy.clone());
        Ok(())
    }

    /// Keeps the binding without effect. Without a binding nothing changes.
    pub fn disable(&mut self) {
        if let Some(policy) = self.policy() {
            *self = Self::Disabled(policy.clone());
        }
    }

    /// Unbinds.
    pub fn none(&mut self) {
        *self = Self::None;
    }

    /// The bound policy, whether enabled or not.
    #[must_use]
    pub const fn policy(&self) -> Option<&PolicyName> {
        match self {
            Self::None => None,
            Self::Enabled(policy) | Self::Disabled(policy) => Some(policy),
        }
    }

    /// Whether a policy is bound and has effect.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        matches!(self, Self::Enabled(_))
    }

    /// The rate words in force for a device whose own ones are `own` (best effort, if it has none).
    ///
    /// # Errors
    /// [`PolicyError::NoSuchPolicy`] when the enabled policy is not in the catalog.
    pub fn resolve(
        &self,
        kind: PolicyKind,
        catalog: &PolicyCatalog,
        own: DeviceRate,
    ) -> Result<DeviceRate, PolicyError> {
        match self {
            Self::Enabled(policy) => catalog.find(kind, policy),
            Self::None | Self::Disabled(_) => Ok(own),
        }
    }
}

#[cfg(test)]
mod tests;
