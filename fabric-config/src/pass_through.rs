//! LUNs that pass commands through: what the words of `iscsi` and `sg` must be.
//!
//! Whether names are iSCSI names, and files are there, is for the process that logs in.

use toml::Spanned;

use crate::error::Problem;
use crate::raw;
use crate::validate::{Result, Validator};
use crate::{ChapConfig, Digests, IscsiConfig, LUN_MAX};

impl Validator<'_> {
    /// Identity, blocks and pace of such a unit are those of another one.
    pub(crate) fn require_no_words_of_blocks(&self, object: &str, raw: &raw::Lun) -> Result<()> {
        let block_bytes = raw.block_bytes.as_ref().map(Spanned::span);
        let serial = raw.serial.as_ref().map(Spanned::span);
        let delay_ms = raw.delay_ms.as_ref().map(Spanned::span);
        for (word, span) in [
            ("block-bytes", block_bytes),
            ("serial", serial),
            ("delay-ms", delay_ms),
        ] {
            if let Some(span) = span {
                self.refuse_word(object, &Spanned::new(span, ()), word)?;
            }
        }
        Ok(())
    }

    fn refuse_word<S>(&self, object: &str, value: &Spanned<S>, word: &'static str) -> Result<()> {
        self.require(object, value, false, || Problem::NotOfMedium { word })
    }

    pub(crate) fn iscsi(&self, object: &str, raw: &raw::Lun) -> Result<Option<IscsiConfig>> {
        let Some(target) = &raw.iscsi else {
            let words = [
                ("portal", &raw.portal),
                ("initiator", &raw.initiator),
                ("user", &raw.user),
                ("secret-file", &raw.secret_file),
                ("digests", &raw.digests),
            ];
            for (word, text) in words {
                if let Some(text) = text {
                    self.refuse_word(object, text, word)?;
                }
            }
            if let Some(lun) = &raw.target_lun {
                self.refuse_word(object, lun, "target-lun")?;
            }
            return Ok(None);
        };
        let needed = |text: Option<&raw::Text>, word| {
            let text = text.ok_or(Problem::IscsiNeeds { word });
            self.at(object, target, text).cloned()
        };
        let portal_text = needed(raw.portal.as_ref(), "portal")?;
        let portal = portal_text.get_ref();
        let portal = portal.parse().map_err(|_error| Problem::Portal {
            portal: portal.clone(),
        });
        let chap = match (&raw.user, &raw.secret_file) {
            (None, None) => None,
            (user, file) => {
                let file = needed(file.as_ref(), "secret-file")?;
                let path = file.get_ref();
                self.require(object, &file, path.starts_with('/'), || {
                    Problem::RelativePath { path: path.clone() }
                })?;
                Some(ChapConfig {
                    user: needed(user.as_ref(), "user")?.into_inner(),
                    secret_file: path.into(),
                })
            }
        };
        let target_lun = raw.target_lun.as_ref().map_or(0, |lun| *lun.get_ref());
        if let Some(lun) = &raw.target_lun {
            self.require(object, lun, target_lun <= LUN_MAX, || Problem::Lun {
                lun: target_lun,
            })?;
        }
        let digests = match &raw.digests {
            None => Digests::default(),
            Some(text) => {
                let known = match text.get_ref().as_str() {
                    "none" => Ok(Digests::None),
                    "preferred" => Ok(Digests::Preferred),
                    "required" => Ok(Digests::Required),
                    other => Err(Problem::Digests {
                        digests: other.to_owned(),
                    }),
                };
                self.at(object, text, known)?
            }
        };
        Ok(Some(IscsiConfig {
            target: target.get_ref().clone(),
            portal: self.at(object, &portal_text, portal)?,
            target_lun,
            initiator: needed(raw.initiator.as_ref(), "initiator")?.into_inner(),
            chap,
            digests,
        }))
    }
}
