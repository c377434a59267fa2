/*
 * DPDK's rte_sched with as many pipes as the scheduler beside it has devices: every pipe has
 * packets, and no rate holds anybody back.
 *
 * Usage: rte_sched PIPES PACKETS. For every byte that it reads it dequeues and enqueues PACKETS
 * packets again and writes a line: the CPU time of its thread for each, in nanoseconds.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <rte_debug.h>
#include <rte_eal.h>
#include <rte_mbuf.h>
#include <rte_sched.h>

enum {
    BURST = 32,
    PIPE_PACKETS = 4,
    QUEUE_PACKETS_MAX = 64,
};
/* 100 Gb/s in bytes. */
static const uint64_t RATE = 12500000000ULL;

static uint64_t thread_nanos(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static struct rte_sched_port *port_of(uint32_t pipes)
{
    struct rte_sched_subport_profile_params subport_profile = {
        .tb_rate = RATE, .tb_size = 1 << 30, .tc_period = 10,
    };
    struct rte_sched_pipe_params pipe_profile = {
        .tb_rate = RATE, .tb_size = 1 << 30, .tc_period = 40, .tc_ov_weight = 1,
        .wrr_weights = {1, 1, 1, 1},
    };
    /* A class without a queue has no rate either. */
    for (int tc = 0; tc < RTE_SCHED_TRAFFIC_CLASSES_PER_PIPE; tc++)
        subport_profile.tc_rate[tc] = RATE;
    pipe_profile.tc_rate[RTE_SCHED_TRAFFIC_CLASS_BE] = RATE;
    struct rte_sched_subport_params subport = {
        .n_pipes_per_subport_enabled = rte_align32pow2(pipes),
        .pipe_profiles = &pipe_profile, .n_pipe_profiles = 1, .n_max_pipe_profiles = 1,
    };
    subport.qsize[RTE_SCHED_TRAFFIC_CLASS_BE] = QUEUE_PACKETS_MAX;
    struct rte_sched_port_params params = {
        .name = "bench", .socket = 0, .rate = RATE, .mtu = 1522,
        .n_subports_per_port = 1, .subport_profiles = &subport_profile,
        .n_subport_profiles = 1, .n_max_subport_profiles = 1,
        .n_pipes_per_subport = rte_align32pow2(pipes),
    };
    struct rte_sched_port *port = rte_sched_port_config(&params);
    if (!port || rte_sched_subport_config(port, 0, &subport, 0))
        rte_exit(EXIT_FAILURE, "rte_sched takes no port with %u pipes\n", pipes);
    for (uint32_t pipe = 0; pipe < pipes; pipe++)
        if (rte_sched_pipe_config(port, 0, pipe, 0))
            rte_exit(EXIT_FAILURE, "rte_sched takes no pipe %u\n", pipe);
    return port;
}

static void fill(struct rte_sched_port *port, uint32_t pipes)
{
    struct rte_mempool *pool = rte_pktmbuf_pool_create("packets", pipes * PIPE_PACKETS + BURST,
                                                       0, 0, 0, SOCKET_ID_ANY);
    if (!pool)
        rte_exit(EXIT_FAILURE, "no memory for the packets of %u pipes\n", pipes);
    for (uint32_t i = 0; i < pipes * PIPE_PACKETS; i++) {
        struct rte_mbuf *packet = rte_pktmbuf_alloc(pool);
        packet->pkt_len = packet->data_len = rand() % 2 ? 64 : 1500;
        rte_sched_port_pkt_write(port, packet, 0, i % pipes, RTE_SCHED_TRAFFIC_CLASS_BE, 0,
                                 RTE_COLOR_GREEN);
        if (rte_sched_port_enqueue(port, &packet, 1) != 1)
            rte_exit(EXIT_FAILURE, "a pipe refused packet %u\n", i);
    }
}

static double slice(struct rte_sched_port *port, uint64_t packets)
{
    struct rte_mbuf *burst[BURST];
    uint64_t begin = thread_nanos(), done = 0;
    while (done < packets) {
        int count = rte_sched_port_dequeue(port, burst, BURST);
        if (rte_sched_port_enqueue(port, burst, count) != count)
            rte_exit(EXIT_FAILURE, "a packet was dropped\n");
        done += count;
    }
    return (double)(thread_nanos() - begin) / done;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        rte_exit(EXIT_FAILURE, "usage: rte_sched PIPES PACKETS\n");
    char *eal[] = {argv[0], "--no-huge", "--no-pci", "--no-shconf", "--no-telemetry",
                   "--log-level=error", "-m", "1024"};
    uint32_t pipes = atoi(argv[1]);
    uint64_t packets = atoi(argv[2]);
    /* DPDK pins its thread to one CPU; the other side of the comparison is not pinned. */
    cpu_set_t cpus;
    sched_getaffinity(0, sizeof cpus, &cpus);
    if (rte_eal_init(RTE_DIM(eal), eal) < 0)
        rte_exit(EXIT_FAILURE, "DPDK does not start\n");
    sched_setaffinity(0, sizeof cpus, &cpus);
    struct rte_sched_port *port = port_of(pipes);
    fill(port, pipes);
    while (getchar() != EOF) {
        printf("%.3f\n", slice(port, packets));
        fflush(stdout);
    }
    return EXIT_SUCCESS;
}
