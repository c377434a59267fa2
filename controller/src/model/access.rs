//! Users and groups.

use controller_api::objects::{RoleMapping, User};

use super::item::Item;
use super::{Model, Problem};

impl Item for User {
    fn check(&self, _: &str, _: &Model) -> Result<(), Problem> {
        Ok(())
    }
}

impl Item for RoleMapping {
    fn check(&self, _: &str, _: &Model) -> Result<(), Problem> {
        if self.group.is_empty() {
            return Err(Problem::invalid("it names no group", "add -group=NAME"));
        }
        Ok(())
    }
}
