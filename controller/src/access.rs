//! Who asks, and what that one may.

use controller_api::{Kind, Refusal, RefusalCode, Role};

use crate::model::Model;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name.
    pub user: String,
    /// What it may.
    pub role: Role,
}

impl Caller {
    /// The controller itself, and whoever runs as the same user of the operating system.
    #[must_use]
    pub fn administrator(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            role: Role::Administrators,
        }
    }

    /// A user of this name in these groups. A group that denies counts most, then the user's own role,
    /// then the groups' in the order of their names.
    pub(crate) fn of(model: &Model, user: &str, groups: &[String]) -> Self {
        let mappings = model.role_mappings.values();
        let roles: Vec<_> = mappings
            .filter(|one| groups.contains(&one.group))
            .map(|one| one.role)
            .collect();
        let own = model.users.get(user).map(|user| user.role);
        let denied = roles.contains(&Role::Noaccess);
        let role = own.or_else(|| roles.first().copied()).filter(|_| !denied);
        Self {
            user: user.to_owned(),
            role: role.unwrap_or(Role::Noaccess),
        }
    }

    pub(crate) fn may_read(&self) -> Result<(), Refusal> {
        match self.role.may_read() {
            true => Ok(()),
            false => Err(self.forbidden("look")),
        }
    }

    pub(crate) fn may_change(&self, kind: Kind) -> Result<(), Refusal> {
        match self.role.may_change(kind) {
            true => Ok(()),
            false => Err(self.forbidden(&format!("change a {kind}"))),
        }
    }

    pub(crate) fn may_administer(&self) -> Result<(), Refusal> {
        match self.role {
            Role::Administrators => Ok(()),
            _ => Err(self.forbidden("do this")),
        }
    }

    fn forbidden(&self, what: &str) -> Refusal {
        Refusal {
            code: RefusalCode::Forbidden,
            object: format!("user {}", self.user),
            problem: format!("role {} may not {what}", self.role.text()),
            next: "ask an administrator: set user NAME -role=ROLE".to_owned(),
            command: None,
        }
    }
}
