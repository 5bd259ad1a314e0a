/*
 * What the suite's images hold and a static busybox lacks, as one program that looks at the name
 * it is called by: a web server called nginx or httpd, pgrep, ipcs, and a printer of its
 * effective user. Linked statically; only arguments that a spec passes are read.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void quit(int signal) {
    (void)signal;
    _exit(0);
}

static int listen_on(int port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_ANY),
    };
    int one = 1;
    int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (server < 0)
        return -1;
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 64))
        return -1;
    return server;
}

/* Reads a request up to its empty line, answers with a page that names the server. */
static void serve(int client, const char *name) {
    char request[4096], page[128];
    size_t have = 0;
    ssize_t got;
    struct timeval patience = {.tv_sec = 5};
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    while (have < sizeof request - 1 &&
           (got = read(client, request + have, sizeof request - 1 - have)) > 0) {
        have += got;
        request[have] = 0;
        if (strstr(request, "\r\n\r\n"))
            break;
    }
    int length = snprintf(page, sizeof page, "<html><title>Welcome to %s!</title></html>\n", name);
    dprintf(client,
            "HTTP/1.1 200 OK\r\nServer: %s\r\nContent-Type: text/html\r\n"
            "Content-Length: %d\r\nConnection: close\r\n\r\n%s",
            name, length, page);
    shutdown(client, SHUT_WR);
    while (read(client, request, sizeof request) > 0)
        ;
    close(client);
}

static int web(const char *name, int port, const char *pid_file) {
    signal(SIGTERM, quit);
    signal(SIGINT, quit);
    signal(SIGQUIT, quit);
    signal(SIGPIPE, SIG_IGN);
    int server = listen_on(port);
    if (server < 0) {
        perror(name);
        return 1;
    }
    if (pid_file) {
        FILE *file = fopen(pid_file, "w");
        if (!file) {
            perror(pid_file);
            return 1;
        }
        fprintf(file, "%d\n", getpid());
        fclose(file);
    }
    printf("%s: listens on port %d\n", name, port);
    fflush(stdout);
    for (;;) {
        int client = accept(server, NULL, NULL);
        if (client >= 0)
            serve(client, name);
    }
}

/* Prints the ids of the processes whose name holds the pattern. */
static int pgrep(const char *pattern) {
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    int code = 1;
    if (!proc) {
        perror("/proc");
        return 3;
    }
    while ((entry = readdir(proc))) {
        char path[300], name[64] = "";
        if (!isdigit((unsigned char)entry->d_name[0]) || atoi(entry->d_name) == getpid())
            continue;
        snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
        FILE *file = fopen(path, "r");
        if (!file)
            continue;
        if (fgets(name, sizeof name, file) && strstr(name, pattern)) {
            puts(entry->d_name);
            code = 0;
        }
        fclose(file);
    }
    closedir(proc);
    return code;
}

/* Shared memory segments, in the columns of util-linux. */
static int ipcs(void) {
    struct shm_info info;
    struct shmid_ds segment;
    int last = shmctl(0, SHM_INFO, (struct shmid_ds *)&info);
    if (last < 0) {
        perror("shmctl");
        return 1;
    }
    puts("key        shmid      owner      perms      bytes      nattch");
    for (int index = 0; index <= last; index++) {
        int id = shmctl(index, SHM_STAT, &segment);
        if (id >= 0)
            printf("0x%08x %-10d %-10u %-10o %-10zu %lu\n", (unsigned)segment.shm_perm.__key, id,
                   segment.shm_perm.uid, segment.shm_perm.mode & 0777, segment.shm_segsz,
                   (unsigned long)segment.shm_nattch);
    }
    return 0;
}

/* The server runs under the title of the real one, which a spec looks for. */
static int nginx(const char *port) {
    execl("/usr/sbin/nginx", "nginx: master process nginx -g daemon off;", port, NULL);
    perror("/usr/sbin/nginx");
    return 1;
}

int main(int count, char **words) {
    const char *slash = strrchr(words[0], '/');
    const char *name = slash ? slash + 1 : words[0];
    if (!strncmp(name, "nginx: master", 13))
        return web("nginx", count > 1 ? atoi(words[1]) : 80, "/var/run/nginx.pid");
    if (!strcmp(name, "nginx"))
        return nginx(count > 1 && isdigit((unsigned char)words[1][0]) ? words[1] : "80");
    if (!strcmp(name, "httpd"))
        return web("httpd", 80, NULL);
    if (!strcmp(name, "pgrep"))
        return pgrep(count > 1 ? words[count - 1] : "");
    if (!strcmp(name, "ipcs"))
        return ipcs();
    if (!strcmp(name, "nonewprivs")) {
        printf("Effective uid: %d\n", (int)geteuid());
        return 0;
    }
    fprintf(stderr, "tools: called as %s, which it is not\n", name);
    return 127;
}
