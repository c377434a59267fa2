/*
 * Credit of one lane (docs/fabric-protocol.md, section 1 and rules 2 to 4 of section 4).
 *
 * The sender counts the blocks that it sent, the receiver grants an absolute limit; both counts
 * are modulo MODULO (2^32 in the protocol). Limits travel on two paths, each in order. So one may
 * come late, after a newer one, or twice, and a few are lost with their path. The receiver says
 * its limit again with every heartbeat.
 *
 * A limit is taken when it is at most a window ahead of what was sent, and further ahead than the
 * present one. That is right as long as no limit is overtaken by MODULO - WINDOW blocks, which
 * `is_fresh` demands of the paths: in the protocol those are nearly 2^32 blocks, and a path that is
 * silent for 2 s is given up long before.
 *
 * Checked: the receiver is never given more than its window holds; what is sent is delivered; and
 * when everything has been released the sender has the whole window again.
 *
 * BUG_1: a limit that goes back is taken.
 * BUG_2: the receiver grants what it still holds.
 * BUG_3: limits are compared without the modulo.
 * BUG_4: a limit is said once and never again.
 * BUG_5: a limit may stay on a path for any time.
 */
#define MODULO 8
#define WINDOW 3
#define FRAME_MAX 2
#define BLOCKS 12 /* in all: the counts wrap */
#ifdef LIVENESS
#define LOSSES 1 /* fairness multiplies the states */
#else
#define LOSSES 2
#endif

#define minus(a, b) (((a) + MODULO - (b)) % MODULO)
/* Behind what was sent by so little that it still will be after `more`; or ahead of it. */
#ifdef BUG_5
#define is_fresh(l, more) true
#else
#define is_fresh(l, more) \
    (minus(sent, l) >= MODULO - WINDOW || minus(sent, l) + more < MODULO - WINDOW)
#endif

chan data = [WINDOW] of { byte };
chan limits[2] = [2] of { byte };

byte sent, limit = WINDOW;    /* the sender's */
byte received, held;          /* the receiver's */
byte granted = WINDOW;        /* what the receiver said last */
byte left = BLOCKS;
byte losses;
byte head[2];                 /* scratch: the oldest limit of each path */

inline peek() {
    if
    :: nempty(limits[0]) -> limits[0] ? <head[0]>
    :: empty(limits[0]) -> head[0] = sent
    fi;
    if
    :: nempty(limits[1]) -> limits[1] ? <head[1]>
    :: empty(limits[1]) -> head[1] = sent
    fi
}

active proctype Sender() {
    byte frame;
    bool ok;
    do
    :: left > 0 ->
        if
        :: frame = 1
        :: left > 1 -> frame = FRAME_MAX
        fi;
        ok = false;
        do
        :: ok -> break
        :: !ok && minus(limit, sent) >= frame ->
            atomic {
                peek();
                ok = is_fresh(head[0], frame) && is_fresh(head[1], frame);
                if
                :: ok -> data ! frame; sent = (sent + frame) % MODULO; left = left - frame
                :: else
                fi;
                head[0] = 0; head[1] = 0
            }
        od
    :: left == 0 -> break
    od
}

/* A limit arrives on a path. */
active [2] proctype Limits() {
    byte l;
    byte path = _pid - 1;
end:
    do
    :: atomic { limits[path] ? l ->
        if
#if defined(BUG_1)
        :: true -> limit = l
#elif defined(BUG_3)
        :: l > limit -> limit = l
        :: else
#else
        :: minus(l, sent) <= WINDOW && minus(l, sent) > minus(limit, sent) -> limit = l
        :: else
#endif
        fi;
        l = 0 }
    od
}

active proctype Receiver() {
    byte frame;
end:
    do
    :: atomic { data ? frame ->
        received = (received + frame) % MODULO;
        held = held + frame;
        assert(held <= WINDOW);
        frame = 0 }
    od
}

/* Whoever uses the buffers gives them back, block by block. */
active proctype Release() {
end:
    do
    :: atomic { held > 0 -> held-- }
    od
}

#ifdef BUG_4
#define TO_SAY (granted != (received + WINDOW - held) % MODULO)
#else
#define TO_SAY true
#endif

/* The limit, on either path or on both; again and again. */
active proctype Grant() {
    byte l;
end:
    do
    :: atomic {
        len(limits[0]) < 2 && len(limits[1]) < 2 && TO_SAY ->
#ifdef BUG_2
        l = (received + WINDOW) % MODULO;
#else
        l = (received + WINDOW - held) % MODULO;
#endif
        granted = l;
        if
        :: limits[0] ! l
        :: limits[1] ! l
        :: limits[0] ! l; limits[1] ! l
        :: losses < LOSSES -> losses++
        fi;
        l = 0 }
    od
}

#define whole (left == 0 && held == 0 && len(data) == 0 && minus(limit, sent) == WINDOW)
ltl window_comes_back { <> [] whole }
