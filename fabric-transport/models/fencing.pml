/*
 * Two directors that share a LUN, and a host that fails over between them: sessions with epochs,
 * and a lock on the LUN (docs/fabric-protocol.md: rules 1 and 7 of section 4; section 6 leaves
 * the rest to failover).
 *
 * Rule of the host: it has one session at a time. It gives up a director that is silent, greets
 * the other with a greater epoch and sends again what was not acknowledged. It believes only the
 * present session.
 *
 * Rule of a director: it executes a command only with the session that the command came in, and
 * while it holds the lock. It lets the lock go when it has given the session up, which it does
 * when it has heard no host for some time, and after the command that is being executed. A new
 * session of the host replaces the old one with its commands. The lock is free, too, when its
 * holder is dead; a holder that is stopped is not dead. The lock keeps the epoch of its newest
 * holder, and is not given to an older session.
 *
 * A director may be stopped between any two steps and go on much later; it may die and come
 * back empty; it may believe that the host is silent when it is not. Frames to a director that is
 * stopped wait for it. No clocks: whatever waits for a time may happen at any time.
 *
 * Checked: never do both directors execute; what has been acknowledged to the host is never
 * executed again; with a bounded number of failures every command is acknowledged.
 *
 * BUG_1: the lock is ignored.
 * BUG_2: the lock is a lease: it ends though its holder is only stopped.
 * BUG_3: the host believes a status of an old session.
 * BUG_4: the lock does not keep the epoch. The host goes from A to B, B executes, answers and
 *        dies; A, which has not noticed yet that its session is over, finds the lock free and
 *        executes the same commands. Only the epoch tells it: its clock may have stood still.
 * BUG_5: a session is given up without waiting for the command that is being executed.
 * BUG_6: commands of an old session are kept when a new one replaces it.
 * BUG_7: a director keeps the lock for a host that has gone.
 */
#define COMMANDS 2
#define ALL ((1 << COMMANDS) - 1)
#ifdef LIVENESS
#define FAILURES 2
#else
#define FAILURES 3 /* 4 hold, too, in eight times the states */
#endif
#define FREE 2

mtype = { HELLO, COMMAND };

chan requests[2] = [5] of { mtype, byte /* epoch */, byte /* command */ };
chan statuses[2] = [2] of { byte /* epoch */, byte /* command */ };

byte failures;
bool stopped[2];

/* The host's. */
byte at;                /* the director of its session */
byte epoch = 1;
byte sent, acknowledged;      /* sets of commands; `sent` in this session */
bool greeted;

/* The directors'. Epoch 0: no session. */
byte session[2];
byte queue[2];
byte executing[2];      /* set of at most one command */
byte command[2];

/* The lock's. */
byte holder = FREE;
byte newest;            /* epoch of its newest holder */

#ifdef BUG_1
#define holds(d) true
#else
#define holds(d) (holder == d)
#endif
#ifdef BUG_4
#define is_stale(e) false
#else
#define is_stale(e) (e < newest)
#endif
#ifdef BUG_5
#define idle(d) true
#else
#define idle(d) (executing[d] == 0)
#endif

inline take_status() {
    if
#ifdef BUG_3
    :: true -> acknowledged = acknowledged | (1 << c)
#else
    :: e == epoch -> acknowledged = acknowledged | (1 << c)
    :: else
#endif
    fi;
    e = 0; c = 0
}

inline give_up(d) {
    session[d] = 0;
    queue[d] = 0;
    if
    :: holder == d -> holder = FREE
    :: else
    fi
}

inline die(d) {
    give_up(d);
    executing[d] = 0; command[d] = 0;
    do
    :: len(requests[d]) > 0 -> requests[d] ? _, _, _
    :: else -> break
    od
}

active proctype Host() {
    byte e, c;
end:
    do
    :: atomic { !greeted && len(requests[at]) < 5 -> requests[at] ! HELLO, epoch, 0; greeted = true }
    :: atomic { greeted && len(requests[at]) < 5 && (ALL & ~(sent | acknowledged)) != 0 ->
        if
        :: ((sent | acknowledged) & 1) == 0 -> c = 0
        :: ((sent | acknowledged) & 2) == 0 -> c = 1
        fi;
        requests[at] ! COMMAND, epoch, c;
        sent = sent | (1 << c);
        c = 0 }
    :: atomic { statuses[0] ? e, c -> take_status() }
    :: atomic { statuses[1] ? e, c -> take_status() }
    /* Silent, or it closed the session. The other one answers. */
    :: atomic { greeted && !stopped[1 - at] && acknowledged != ALL &&
        (stopped[at] || (session[at] != epoch && len(requests[at]) == 0)) ->
        at = 1 - at; epoch++; sent = 0; greeted = false }
    od
}

/* The director's link and its sessions. */
active [2] proctype Session() {
    byte d = _pid - 1;
    byte e, c;
end:
    do
    :: atomic { !stopped[d] && idle(d) && requests[d] ? [HELLO, _, _] ->
        requests[d] ? HELLO, e, _;
        session[d] = e;
#ifndef BUG_6
        queue[d] = 0;
#endif
        if
        :: holder == d -> newest = e
        :: else
        fi;
        e = 0 }
    :: atomic { !stopped[d] && requests[d] ? [COMMAND, _, _] ->
        requests[d] ? COMMAND, e, c;
        if
        :: e == session[d] -> queue[d] = queue[d] | (1 << c)
        :: else
        fi;
        e = 0; c = 0 }
    od
}

/* It gives up a session whose host it has not heard for long: the host has gone elsewhere. */
active [2] proctype Watch() {
    byte d = _pid - 3;
end:
    do
    :: atomic { !stopped[d] && session[d] != 0 && idle(d) && !(at == d && session[d] == epoch) ->
#ifdef BUG_7
        session[d] = 0; queue[d] = 0
#else
        give_up(d)
#endif
        }
    od
}

/* The threads of the LUN: between any two steps the director may be stopped. */
active [2] proctype Lun() {
    byte d = _pid - 5;
    byte e;
end:
    do
    :: atomic { !stopped[d] && session[d] != 0 && holder == FREE && !is_stale(session[d]) ->
        holder = d; newest = session[d] }
    :: atomic { !stopped[d] && session[d] != 0 && holds(d) && queue[d] != 0 && executing[d] == 0 ->
        if
        :: queue[d] & 1 -> command[d] = 0
        :: queue[d] & 2 -> command[d] = 1
        fi;
        queue[d] = queue[d] & ~(1 << command[d]);
        executing[d] = 1 << command[d];
        e = session[d] }
    :: atomic { !stopped[d] && executing[d] != 0 && len(statuses[d]) < 2 ->
        /* Here the LUN changes. */
        assert(executing[1 - d] == 0);
        assert((acknowledged & executing[d]) == 0);
        executing[d] = 0;
        statuses[d] ! e, command[d];
        command[d] = 0; e = 0 }
    od
}

/* What befalls a director. */
active [2] proctype Fate() {
    byte d = _pid - 7;
end:
    do
    :: atomic { failures < FAILURES && !stopped[d] -> failures++; stopped[d] = true }
    :: stopped[d] -> stopped[d] = false
    /* It dies, and comes back with nothing. */
    :: atomic { failures < FAILURES ->
        failures++; die(d); stopped[d] = false }
    /* It misses heartbeats of a host that is there. */
    :: atomic { failures < FAILURES && !stopped[d] && session[d] != 0 && idle(d) ->
        failures++; give_up(d) }
#ifdef BUG_2
    :: atomic { stopped[d] && holder == d -> holder = FREE }
#endif
    od
}

ltl all_acknowledged { <> (acknowledged == ALL) }
