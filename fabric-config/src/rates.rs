//! The words of bandwidth: links and ports, policies, devices and VMs.

use std::time::Duration;

use qos::{
    Attachment, BitRate, DeviceRate, LinkBudget, OperationLimit, PolicyKind, PolicyName, VmRate,
};
use toml::Spanned;

use crate::VmConfig;
use crate::admit::Direction;
use crate::error::Problem;
use crate::raw;
use crate::validate::{Result, Validator};

/// A link's rate, which must be above zero.
fn link_rate(text: &str) -> std::result::Result<BitRate, Problem> {
    let rate: BitRate = text.parse()?;
    if rate.is_zero() {
        Err(Problem::LinkRateIsZero)
    } else {
        Ok(rate)
    }
}

impl Validator<'_> {
    pub(crate) fn bits(&self, object: &str, text: Option<&raw::Text>) -> Result<Option<BitRate>> {
        text.map(|text| self.at(object, text, text.get_ref().parse::<BitRate>()))
            .transpose()
    }

    /// A budget of what the hop carries, not yet of what it is sold as.
    fn budget(
        &self,
        object: &str,
        hop: String,
        carries: &raw::Text,
        reservable: Option<&raw::Text>,
    ) -> Result<LinkBudget> {
        let rate = self.at(object, carries, link_rate(carries.get_ref()))?;
        let Some(spanned) = reservable else {
            return Ok(LinkBudget::new(hop, rate));
        };
        let reservable = self.at(object, spanned, spanned.get_ref().parse::<BitRate>())?;
        let budget = LinkBudget::with_reservable(hop, rate, reservable).map_err(Problem::Budget);
        self.at(object, spanned, budget)
    }

    pub(crate) fn link_budget(
        &self,
        object: &str,
        hop: String,
        words: raw::LinkWords<'_>,
    ) -> Result<LinkBudget> {
        let nominal = self.at(object, words.rate, link_rate(words.rate.get_ref()))?;
        let carries = words.payload.unwrap_or(words.rate);
        let mut budget = self.budget(object, hop, carries, words.reservable)?;
        let payload = budget.rate();
        self.require(object, carries, payload <= nominal, || Problem::Payload {
            payload,
            rate: nominal,
        })?;
        budget = budget.sold_as(nominal);
        if let Some(spanned) = words.protected {
            let protected = self.at(object, spanned, spanned.get_ref().parse::<BitRate>())?;
            let reservable = budget.reservable();
            self.require(object, spanned, protected <= reservable, || {
                Problem::Protected {
                    protected,
                    reservable,
                }
            })?;
            budget = budget.with_protected(protected);
        }
        Ok(if words.oversubscribe {
            budget.oversubscribed()
        } else {
            budget
        })
    }

    /// The budget of a port in each direction; without a rate the port has none.
    pub(crate) fn port_budget(
        &self,
        object: &str,
        rate: Option<&raw::Text>,
        reservable: Option<&raw::Text>,
    ) -> Result<Option<LinkBudget>> {
        if let Some(rate) = rate {
            let hop = object.to_owned();
            return self.budget(object, hop, rate, reservable).map(Some);
        }
        reservable.map_or(Ok(None), |spanned| {
            self.at(object, spanned, Err(Problem::ReservableWithoutRate))
        })
    }

    pub(crate) fn policies(&mut self, policies: &[raw::QosPolicy]) -> Result<()> {
        for raw in policies {
            let kind = match raw.kind.get_ref().as_str() {
                "network" => Ok(PolicyKind::Network),
                "san" => Ok(PolicyKind::San),
                other => Err(Problem::PolicyKind {
                    kind: other.to_owned(),
                }),
            };
            let kind = self.at("qos-policy", &raw.kind, kind)?;
            let name = PolicyName::new(raw.set.get_ref(), raw.name.get_ref());
            let name = self.at("qos-policy", &raw.name, name)?;
            let object = format!("qos-policy {name}");
            let rate = DeviceRate {
                cir: self.bits(&object, raw.cir.as_ref())?.unwrap_or_default(),
                cbs_bytes: raw.cbs_bytes,
                pir: self.bits(&object, raw.pir.as_ref())?,
                pbs_bytes: raw.pbs_bytes,
                weight: raw.weight,
                ..DeviceRate::default()
            };
            let place = raw.pir.as_ref().unwrap_or(&raw.name);
            self.at(&object, place, rate.validate().map_err(Problem::PolicyRate))?;
            let added = self.policies.add(kind, name, rate);
            self.at(&object, &raw.name, added)?;
        }
        Ok(())
    }

    /// The words in force for one direction of a device, and the policy they are of.
    pub(crate) fn rate(
        &self,
        object: &str,
        kind: PolicyKind,
        direction: Direction,
        raw: Option<&Spanned<raw::Rate>>,
    ) -> Result<(DeviceRate, Attachment)> {
        let Some(spanned) = raw else {
            return Ok((DeviceRate::best_effort(), Attachment::None));
        };
        let raw = spanned.get_ref();
        if let Some(policy) = &raw.policy {
            self.require(object, policy, !raw.has_own(), || Problem::PolicyAndWords {
                direction,
                policy: policy.get_ref().clone(),
            })?;
            let name = self.at(object, policy, policy.get_ref().parse::<PolicyName>())?;
            // Also a disabled one must be there, or enabling it would fail.
            self.at(object, policy, self.policies.find(kind, &name))?;
            let mut attachment = Attachment::Enabled(name);
            if raw.enabled.as_ref().map(Spanned::get_ref) == Some(&false) {
                attachment.disable();
            }
            let own = DeviceRate::best_effort();
            let words = attachment.resolve(kind, &self.policies, own);
            return Ok((self.at(object, policy, words)?, attachment));
        }
        if let Some(enabled) = &raw.enabled {
            let problem = Problem::EnabledWithoutPolicy { direction };
            self.at(object, enabled, Err::<(), _>(problem))?;
        }
        let rate = DeviceRate {
            cir: self.bits(object, raw.cir.as_ref())?.unwrap_or_default(),
            cbs_bytes: raw.cbs_bytes.unwrap_or_default(),
            pir: self.bits(object, raw.pir.as_ref())?,
            pbs_bytes: raw.pbs_bytes.unwrap_or_default(),
            weight: raw.weight.unwrap_or_default(),
            delay_max: self.delay_max(object, direction, raw)?,
            operations: self.operations(object, kind, direction, raw)?,
            unprotected: raw.unprotected.unwrap_or_default(),
        };
        if let (Some(delay), true) = (&raw.delay_us, rate.cir.is_zero()) {
            let problem = Problem::DelayWithoutCir { direction };
            self.at(object, delay, Err::<(), _>(problem))?;
        }
        let fits = rate
            .validate()
            .map_err(|source| Problem::DeviceRate { direction, source });
        self.at(object, spanned, fits)?;
        Ok((rate, Attachment::None))
    }

    fn delay_max(
        &self,
        object: &str,
        direction: Direction,
        raw: &raw::Rate,
    ) -> Result<Option<Duration>> {
        let Some(spanned) = &raw.delay_us else {
            return Ok(None);
        };
        let micros = *spanned.get_ref();
        self.require(object, spanned, micros > 0, || Problem::DelayIsZero {
            direction,
        })?;
        Ok(Some(Duration::from_micros(micros.into())))
    }

    fn operations(
        &self,
        object: &str,
        kind: PolicyKind,
        direction: Direction,
        raw: &raw::Rate,
    ) -> Result<Option<OperationLimit>> {
        for spanned in [&raw.iops, &raw.iops_burst].into_iter().flatten() {
            let vhba = kind == PolicyKind::San;
            self.require(object, spanned, vhba, || Problem::OperationsOfVnic {
                direction,
            })?;
        }
        match (&raw.iops, &raw.iops_burst) {
            (None, None) => Ok(None),
            (None, Some(burst)) => {
                let problem = Problem::OperationBurstAlone { direction };
                self.at(object, burst, Err(problem))
            }
            (Some(iops), burst) => {
                let per_second = *iops.get_ref();
                self.require(object, iops, per_second > 0, || {
                    Problem::OperationsAreZero { direction }
                })?;
                let burst = burst.as_ref().map_or(0, |burst| *burst.get_ref());
                Ok(Some(OperationLimit { per_second, burst }))
            }
        }
    }

    /// The words of a VM, whose devices must fit into them.
    pub(crate) fn vm_rate(
        &self,
        vm: &VmConfig,
        direction: Direction,
        raw: Option<&Spanned<raw::VmRate>>,
    ) -> Result<VmRate> {
        let Some(spanned) = raw else {
            return Ok(VmRate::default());
        };
        let raw = spanned.get_ref();
        let object = format!("vm {}", vm.name);
        let rate = VmRate {
            cir: self.bits(&object, raw.cir.as_ref())?.unwrap_or_default(),
            pir: self.bits(&object, raw.pir.as_ref())?,
            pbs_bytes: raw.pbs_bytes,
            weight: raw.weight,
        };
        let fits = rate
            .validate(BitRate::ZERO)
            .map_err(|source| Problem::DeviceRate { direction, source });
        self.at(&object, spanned, fits)?;
        let devices = vm.reserved(direction);
        let cir = (!rate.cir.is_zero()).then_some(rate.cir);
        for (word, rate) in [("cir", cir), ("pir", rate.pir)] {
            if let Some(rate) = rate {
                self.require(&object, spanned, devices <= rate, || {
                    Problem::VmBelowDevices {
                        direction,
                        word,
                        rate,
                        devices,
                    }
                })?;
            }
        }
        Ok(rate)
    }
}
