use proptest::prelude::*;

use super::*;

fn name(text: &str) -> PolicyName {
    text.parse().unwrap()
}

fn rate(cir: &str, pir: &str) -> DeviceRate {
    DeviceRate::new(cir.parse().unwrap(), Some(pir.parse().unwrap())).unwrap()
}

const KINDS: [PolicyKind; 2] = [PolicyKind::Network, PolicyKind::San];

#[test]
fn every_predefined_name_resolves_to_the_words_it_says() {
    let catalog = PolicyCatalog::default();
    for (kind, count) in KINDS.into_iter().zip([20, 10]) {
        let sets: Vec<_> = catalog.sets(kind).collect();
        assert_eq!((sets.len(), sets[0].0), (1, DEFAULT_SET));
        assert_eq!(sets[0].1.policies().count(), count);
        for (policy, _) in sets[0].1.policies() {
            let (cir, pir) = policy.split_once('_').unwrap();
            let (cir, pir): (PolicyRate, PolicyRate) = (cir.parse().unwrap(), pir.parse().unwrap());
            let mut attachment = Attachment::default();
            attachment.attach(PolicyName::new(DEFAULT_SET, policy).unwrap());
            let resolved = attachment.resolve(kind, &catalog, DeviceRate::best_effort());
            assert_eq!(resolved, Ok(DeviceRate::new(cir.0, Some(pir.0)).unwrap()));
        }
    }
}

#[test]
fn predefined_policies_stay_as_they_are() {
    let mut catalog = PolicyCatalog::default();
    let before = catalog.clone();
    for (kind, text) in [
        (PolicyKind::Network, "default/1m_10m"),
        (PolicyKind::San, "default/mine"),
    ] {
        let name = name(text);
        let refused = PolicyError::Predefined {
            kind,
            name: name.clone(),
        };
        assert_eq!(
            catalog.add(kind, name.clone(), rate("1M", "2M")),
            Err(refused.clone())
        );
        assert_eq!(
            catalog.change(kind, &name, rate("1M", "2M")),
            Err(refused.clone())
        );
        assert_eq!(catalog.remove(kind, &name), Err(refused));
    }
    assert_eq!(catalog, before);
}

#[test]
fn own_policies_come_change_and_go() {
    let mut catalog = PolicyCatalog::default();
    let (kind, web) = (PolicyKind::Network, name("gold/web"));
    catalog
        .add(kind, web.clone(), rate("200M", "500M"))
        .unwrap();
    assert_eq!(
        catalog
            .add(kind, web.clone(), rate("1M", "2M"))
            .unwrap_err()
            .to_string(),
        "network policer gold/web exists; choose another name"
    );
    assert_eq!(catalog.find(kind, &web), Ok(rate("200M", "500M")));
    assert!(
        catalog.find(PolicyKind::San, &web).is_err(),
        "kinds are apart"
    );
    catalog
        .add(PolicyKind::San, web.clone(), rate("1M", "2M"))
        .unwrap();
    catalog.change(kind, &web, rate("300M", "500M")).unwrap();
    let wrong = DeviceRate {
        pir: Some(BitRate::ZERO),
        ..DeviceRate::default()
    };
    assert!(matches!(
        catalog.change(kind, &web, wrong),
        Err(PolicyError::InvalidRate { .. })
    ));
    assert_eq!(catalog.remove(kind, &web), Ok(rate("300M", "500M")));
    assert_eq!(
        catalog.set(kind, "gold"),
        None,
        "a set goes with its last policy"
    );
    assert!(matches!(
        catalog.remove(kind, &web),
        Err(PolicyError::NoSuchPolicy { .. })
    ));
    assert_eq!(catalog.find(PolicyKind::San, &web), Ok(rate("1M", "2M")));
}

#[test]
fn a_catalog_has_a_limit() {
    let mut catalog = PolicyCatalog::default();
    for number in 0..POLICIES_MAX {
        let name = name(&format!("many/p{number}"));
        catalog
            .add(PolicyKind::San, name, rate("1M", "2M"))
            .unwrap();
    }
    assert!(matches!(
        catalog.add(PolicyKind::Network, name("one/more"), rate("1M", "2M")),
        Err(PolicyError::TooMany { .. })
    ));
}

#[test]
fn an_unknown_policy_is_answered_with_the_nearest_names() {
    let mut catalog = PolicyCatalog::default();
    catalog
        .add(PolicyKind::Network, name("gold/web"), rate("1M", "2M"))
        .unwrap();
    for (kind, text, message) in [
        (
            PolicyKind::Network,
            "default/100m_250",
            "there is no network policer default/100m_250; the nearest are default/100m_250m, \
             default/100m_1g, default/10m_50m",
        ),
        (
            PolicyKind::Network,
            "Gold/wbe",
            "there is no network policer Gold/wbe; the nearest are gold/web,",
        ),
        (
            PolicyKind::San,
            "default/250m_500m",
            "there is no SAN shaper default/250m_500m; the nearest are default/250M_500M,",
        ),
    ] {
        let error = catalog.find(kind, &name(text)).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn malformed_references_are_refused() {
    for text in ["", "default", "none"] {
        let error = PolicyError::Reference { text: text.into() };
        assert_eq!(text.parse::<PolicyName>(), Err(error));
    }
    for text in [
        "/",
        "a/",
        "/a",
        "a/b/c",
        "a b/c",
        "ä/b",
        &format!("a/{}", "b".repeat(64)),
    ] {
        assert!(
            matches!(text.parse::<PolicyName>(), Err(PolicyError::Name { .. })),
            "{text}"
        );
    }
}

#[test]
fn disabling_keeps_the_binding_and_none_unbinds() {
    let catalog = PolicyCatalog::default();
    let (kind, own) = (PolicyKind::Network, rate("1M", "2M"));
    let mut attachment = Attachment::default();
    assert_eq!(attachment.resolve(kind, &catalog, own), Ok(own));
    assert_eq!(attachment.enable(), Err(PolicyError::NothingAttached));
    attachment.disable();
    assert_eq!(attachment, Attachment::None);

    attachment.attach(name("default/1g_10g"));
    assert!(attachment.is_enabled());
    assert_eq!(
        attachment.resolve(kind, &catalog, own),
        Ok(rate("1G", "10G"))
    );
    for _twice in 0..2 {
        attachment.disable();
        assert_eq!(attachment.resolve(kind, &catalog, own), Ok(own));
        assert_eq!(attachment.policy(), Some(&name("default/1g_10g")));
    }
    for _twice in 0..2 {
        attachment.enable().unwrap();
        assert_eq!(
            attachment.resolve(kind, &catalog, own),
            Ok(rate("1G", "10G"))
        );
    }
    attachment.none();
    assert_eq!(attachment, Attachment::None);

    attachment.attach(name("gone/gone"));
    assert!(attachment.resolve(kind, &catalog, own).is_err());
    attachment.disable();
    assert_eq!(attachment.resolve(kind, &catalog, own), Ok(own));
}

proptest! {
    #[test]
    fn names_read_as_they_are_written(set in "[A-Za-z0-9_-]{1,63}", policy in "[A-Za-z0-9_-]{1,63}") {
        let name = PolicyName::new(&set, &policy).unwrap();
        prop_assert_eq!((name.set(), name.policy()), (set.as_str(), policy.as_str()));
        prop_assert_eq!(name.to_string().parse(), Ok(name));
    }

    #[test]
    fn any_text_is_read_or_refused_without_a_panic(text in ".{0,12}|[a-z0-9/_-]{0,70}") {
        if let Ok(name) = text.parse::<PolicyName>() {
            prop_assert_eq!(name.to_string(), text);
            let catalog = PolicyCatalog::default();
            for kind in KINDS {
                if let Err(PolicyError::NoSuchPolicy { nearest, .. }) = catalog.find(kind, &name) {
                    prop_assert_eq!(nearest.len(), NEAREST_MAX);
                }
            }
        }
    }

    /// The oracle is a plain map from the written name to the words.
    #[test]
    fn a_catalog_is_a_map_from_names_to_words(
        calls in prop::collection::vec((0..3_u8, "[ab]/[abc]", 1..5_u64), 0..40)
    ) {
        let (mut catalog, mut oracle) = (PolicyCatalog::default(), BTreeMap::new());
        let kind = PolicyKind::San;
        for (call, text, cir) in calls {
            let words = DeviceRate::new(BitRate::from_bits_per_second(cir), None).unwrap();
            let known = oracle.contains_key(&text);
            let done = match call {
                0 => catalog.add(kind, name(&text), words).is_ok(),
                1 => catalog.change(kind, &name(&text), words).is_ok(),
                _ => catalog.remove(kind, &name(&text)).is_ok(),
            };
            prop_assert_eq!(done, known != (call == 0));
            if done && call == 2 {
                oracle.remove(&text);
            } else if done {
                oracle.insert(text, words);
            }
        }
        let own = catalog.sets(kind).filter(|(set, _)| *set != DEFAULT_SET);
        let own: BTreeMap<_, _> = own
            .flat_map(|(set, of)| of.policies().map(move |(name, rate)| (format!("{set}/{name}"), *rate)))
            .collect();
        prop_assert_eq!(own, oracle);
    }
}
