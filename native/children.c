/*
 * Programs that a program starts are in the box too, also when it clears their environment or puts another library into
 * LD_PRELOAD. Setting LD_PRELOAD to nothing is the way out.
 */
#include "box.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *kept[4]; /* NAME=value */
static const char *const names[4] = {"VFIOBOX_SOCKET", "VFIOBOX_ROOT", "VFIOBOX_SYSFS", "VFIOBOX_PATHS"};
static const char *library;
static size_t library_length;

void children_init(void)
{
	Dl_info info;
	if (dladdr((void *)children_init, &info) && info.dli_fname && info.dli_fname[0] == '/') {
		library = strdup(info.dli_fname);
		library_length = library ? strlen(library) : 0;
	}
	for (int i = 0; i < 4; i++) {
		const char *v = getenv(names[i]);
		size_t n = strlen(names[i]);
		if (!v || !(kept[i] = malloc(n + strlen(v) + 2))) continue;
		memcpy(kept[i], names[i], n);
		kept[i][n] = '=';
		strcpy(kept[i] + n + 1, v);
	}
}

static const char *value_of(const char *entry, const char *name)
{
	size_t n = strlen(name);
	return !strncmp(entry, name, n) && entry[n] == '=' ? entry + n + 1 : 0;
}

static int names_library(const char *list)
{
	for (const char *p = list; (p = strstr(p, library)); p++)
		if ((p == list || p[-1] == ':' || p[-1] == ' ') && (!p[library_length] || p[library_length] == ':' || p[library_length] == ' ')) return 1;
	return 0;
}

/* Bytes needed for the text and entries needed for the array; 0 entries: the environment is fine as it is. */
static size_t lacking(char *const *env, size_t *text)
{
	int have[4] = {0}, preloaded = 0, changes = 0;
	size_t count = 0;
	*text = library_length + 16;
	for (; env && env[count]; count++) {
		const char *v;
		for (int i = 0; i < 4; i++)
			if (value_of(env[count], names[i])) have[i] = 1;
		if (!(v = value_of(env[count], "LD_PRELOAD"))) continue;
		preloaded = !*v || names_library(v) ? 2 : 1;
		if (preloaded == 1) *text += strlen(v) + 1;
	}
	if (preloaded != 2) changes++;
	for (int i = 0; i < 4; i++) changes += kept[i] && !have[i];
	return changes ? count + 7 : 0;
}

static void fill(char *const *env, char **out, char *text)
{
	int have[4] = {0}, preloaded = 0;
	size_t n = 0;
	for (; env && *env; env++) {
		const char *v;
		for (int i = 0; i < 4; i++)
			if (value_of(*env, names[i])) have[i] = 1;
		out[n++] = *env;
		if (!(v = value_of(*env, "LD_PRELOAD"))) continue;
		preloaded = 1;
		if (!*v || names_library(v)) continue;
		out[n - 1] = text;
		strcpy(text, "LD_PRELOAD=");
		memcpy(text + 11, library, library_length);
		text[11 + library_length] = ':';
		strcpy(text + 12 + library_length, v);
	}
	if (!preloaded) {
		strcpy(text, "LD_PRELOAD=");
		memcpy(text + 11, library, library_length + 1);
		out[n++] = text;
	}
	for (int i = 0; i < 4; i++)
		if (kept[i] && !have[i]) out[n++] = kept[i];
	out[n] = 0;
}

/* `env` becomes a complete environment on the stack: exec may follow a vfork. */
#define COMPLETE(env)                                                                                                                       \
	size_t text_ = 0, entries_ = box_active && library ? lacking(env, &text_) : 0;                                                      \
	char *array_[entries_ + 1], room_[text_ + 1];                                                                                       \
	if (entries_) {                                                                                                                     \
		fill(env, array_, room_);                                                                                                   \
		env = array_;                                                                                                               \
	}

/*
 * `modprobe vfio-pci`: the box's modules are loaded, and the system's are not to be touched for it. What to run instead, or 0: the
 * modules are not all the box's. Removing one of them fails, as of a module in use.
 */
static const char *instead_of_modprobe(const char *file, char *const argv[])
{
	const char *base = file ? strrchr(file, '/') : 0;
	if (!box_active || !file || strcmp(base ? base + 1 : file, "modprobe") || !argv || !argv[0]) return 0;
	const char *root = getenv("VFIOBOX_ROOT"), *answer = "/bin/true";
	int found = 0;
	for (int i = 1; argv[i]; i++) {
		char path[512];
		size_t n = root ? strlen(root) : 0, length = strlen(argv[i]);
		if (argv[i][0] == '-') {
			if (!strcmp(argv[i], "-r") || !strcmp(argv[i], "--remove")) answer = "/bin/false";
			continue;
		}
		if (strchr(argv[i], '=')) continue; /* a module's parameter */
		if (!n || n + length + 13 > sizeof path || strchr(argv[i], '/')) return 0;
		memcpy(path, root, n);
		strcpy(path + n, "/sys/module/");
		for (size_t k = 0; k <= length; k++) path[n + 12 + k] = argv[i][k] == '-' ? '_' : argv[i][k];
		if (SYS(faccessat, AT_FDCWD, path, F_OK) < 0) return 0;
		found = 1;
	}
	return found ? answer : 0;
}

static char *const no_arguments[] = {"true", 0};
#define MODPROBE(file, argv)                                                                                                                \
	const char *other_ = instead_of_modprobe(file, argv);                                                                               \
	if (unlikely(other_)) {                                                                                                             \
		file = other_;                                                                                                              \
		argv = no_arguments;                                                                                                        \
	}

EXPORT int execve(const char *path, char *const argv[], char *const env[])
{
	MODPROBE(path, argv)
	COMPLETE(env)
	return REAL(execve)(path, argv, env);
}
EXPORT int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}
EXPORT int execvpe(const char *file, char *const argv[], char *const env[])
{
	MODPROBE(file, argv)
	COMPLETE(env)
	return REAL(execvpe)(file, argv, env);
}
EXPORT int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}
EXPORT int fexecve(int fd, char *const argv[], char *const env[])
{
	COMPLETE(env)
	return REAL(fexecve)(fd, argv, env);
}
EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes, char *const argv[],
                       char *const env[])
{
	MODPROBE(path, argv)
	COMPLETE(env)
	return REAL(posix_spawn)(pid, path, actions, attributes, argv, env);
}
EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes, char *const argv[],
                        char *const env[])
{
	MODPROBE(file, argv)
	COMPLETE(env)
	return REAL(posix_spawnp)(pid, file, actions, attributes, argv, env);
}

#define LIST(name, call, with_env)                                                                                                          \
	EXPORT int name(const char *path, const char *arg, ...)                                                                             \
	{                                                                                                                                   \
		va_list ap;                                                                                                                 \
		size_t n = 1;                                                                                                               \
		va_start(ap, arg);                                                                                                          \
		while (va_arg(ap, char *)) n++;                                                                                             \
		va_end(ap);                                                                                                                 \
		char *argv[n + 1], *const *env = environ;                                                                                   \
		va_start(ap, arg);                                                                                                          \
		argv[0] = (char *)arg;                                                                                                      \
		for (size_t i = 1; i <= n; i++) argv[i] = va_arg(ap, char *);                                                        \
		if (with_env) env = va_arg(ap, char *const *);                                                                              \
		va_end(ap);                                                                                                                 \
		return call(path, argv, env);                                                                                               \
	}
LIST(execl, execve, 0)
LIST(execle, execve, 1)
LIST(execlp, execvpe, 0)
