//! Kernel modules in the order they must be loaded, from `modules.dep` (modules.dep(5)).
//!
//! A line names a module's file and, after a colon, the files it needs. depmod writes the needs
//! of the needs too, but their order is not relied upon here: each is resolved by its own line.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

/// Why the modules cannot be put in order.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ModulesError {
    /// A file that another needs has no line of its own.
    #[error("modules.dep has no line for {file}")]
    NoLine {
        /// The file.
        file: String,
    },
    /// Neither a file nor built in.
    #[error("kernel has no module {name}, neither as a file nor built in")]
    NoModule {
        /// Its name.
        name: String,
    },
}

/// What `modules.dep` and `modules.builtin` of one kernel say.
#[derive(Clone, Debug)]
pub struct ModuleList {
    needs: BTreeMap<String, Vec<String>>,
    files: BTreeMap<String, String>,
    built_in: BTreeSet<String>,
}

impl ModuleList {
    /// Reads the text of both files. A line without a colon is skipped.
    #[must_use]
    pub fn parse(modules_dep: &str, modules_builtin: &str) -> Self {
        let mut needs = BTreeMap::new();
        let mut files = BTreeMap::new();
        for (file, rest) in modules_dep.lines().filter_map(|line| line.split_once(':')) {
            files.insert(name_of(file), file.to_owned());
            needs.insert(
                file.to_owned(),
                rest.split_whitespace().map(str::to_owned).collect(),
            );
        }
        Self {
            needs,
            files,
            built_in: modules_builtin.lines().map(name_of).collect(),
        }
    }

    /// The files of these modules and of all they need, each once, each after its needs. A
    /// module that is built in has no file. `-` and `_` in names are the same.
    ///
    /// # Errors
    ///
    /// [`ModulesError`] for a module or a need that does not exist.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<String>, ModulesError> {
        let mut order = Vec::new();
        for name in names {
            let name = name_of(name);
            match self.files.get(&name) {
                Some(file) => self.visit(file, &mut order, &mut BTreeSet::new())?,
                None if self.built_in.contains(&name) => {}
                None => return Err(ModulesError::NoModule { name }),
            }
        }
        Ok(order)
    }

    /// `open` holds the files being visited: a circle, which depmod never writes, ends there.
    fn visit<'a>(
        &'a self,
        file: &'a str,
        order: &mut Vec<String>,
        open: &mut BTreeSet<&'a str>,
    ) -> Result<(), ModulesError> {
        if order.iter().any(|done| done == file) || !open.insert(file) {
            return Ok(());
        }
        let needs = self.needs.get(file).ok_or_else(|| ModulesError::NoLine {
            file: file.to_owned(),
        })?;
        for need in needs {
            self.visit(need, order, open)?;
        }
        order.push(file.to_owned());
        Ok(())
    }
}

fn name_of(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko
kernel/lost.ko: kernel/nowhere.ko
";

    fn names(names: &[&str]) -> Result<Vec<String>, ModulesError> {
        let list = ModuleList::parse(DEP, "kernel/drivers/char/hw_random/rng-core.ko\n");
        list.load_order(names)
    }

    #[test]
    fn what_a_module_needs_comes_first_and_once() {
        let order = names(&["virtio_pci", "virtio_net"]).unwrap();
        let short: Vec<String> = order.iter().map(|file| name_of(file)).collect();
        let expected = [
            "virtio_ring",
            "virtio",
            "virtio_pci",
            "failover",
            "net_failover",
            "virtio_net",
        ];
        assert_eq!(short, expected);
    }

    #[test]
    fn dashes_and_built_in_modules_are_known() {
        assert_eq!(names(&["rng_core"]).unwrap(), Vec::<String>::new());
        assert_eq!(names(&["virtio_rng"]).unwrap().len(), 3);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let name = "virtio_nothing".to_owned();
        assert_eq!(
            names(&["virtio-nothing"]),
            Err(ModulesError::NoModule { name })
        );
        let file = "kernel/nowhere.ko".to_owned();
        assert_eq!(names(&["lost"]), Err(ModulesError::NoLine { file }));
    }
}
